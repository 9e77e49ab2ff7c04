"""A person's own data: texts, with a class each, or as they are for a language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.core.data_files import TABLE, Array, DataFolder, hold_memory
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeInt, PositiveInt, options
from fedsim.nets.losses import IGNORED
from fedsim.problems.datasets.arrays import coded_owners, coded_targets
from fedsim.problems.datasets.arrow import PATH
from fedsim.problems.datasets.base import SHARE, Dataset, Indices, hold_unsplit, split_off
from fedsim.problems.datasets.documents import Documents, Fields, read_documents
from fedsim.problems.datasets.tokenizing import Tokens, from_file, learned

KINDS = ("characters", "words")


@options
class Text:
    """Texts as sequences of tokens: with `label`, a class a text; without, each next token for a language model.

    From files of text (`.txt`, each one text), JSON (`.jsonl`), tables (`.csv`), Parquet, or a folder of the library
    `datasets`. A sequence that is shorter than `length` is filled up with padding behind it, which does not count.
    """

    path: str
    """The file, those of a pattern such as `plays/*.txt`, or a folder; absolute, or below the current or the data
    folder.
    """
    text: str = "text"
    """The field, or column, of the texts."""
    label: str | None = None
    """The field of the labels. Not given: every next token is learned, as by a language model."""
    label_is_folder: bool = False
    """The label of a file of text is the name of the folder that it is in."""
    owner: str | None = None
    """The owner's field. Not given: nobody owns texts."""
    owner_is_file: bool = False
    """Each file of text is what one owner has."""
    tokens: str = "words"
    """What a token is: characters; words (and marks between them); or a file, `tokenizer.json`, of the library
    `tokenizers` (`pip install "fedsim-lab[text]"`).
    """
    lowercase: bool = False
    """Characters and words are taken in small letters."""
    vocabulary: PositiveInt | None = None
    """How many different characters or words are told apart at most, the most frequent of the training texts, with
    padding and one that means any other. Not given: all of them.
    """
    length: PositiveInt = 128
    """Tokens of a sequence. With labels, longer texts are cut; without, they are several sequences, one after
    another.
    """
    test_path: str | None = None
    """The texts of the test set. Not given: the split of a saved data set, if it has one, or else `test_share`."""
    test_share: Fraction = SHARE
    """Share of the texts that is the test set, of each owner, or else of each class; of files of text for a language
    model, the last share of each text.
    """
    split_seed: NonNegativeInt = 0
    """Which texts are the test set then; it does not follow the run's seed."""

    def __post_init__(self) -> None:
        if self.label is not None and self.label_is_folder:
            raise InputError("label_is_folder", True, "label names a field already; leave one of the two out")
        if self.owner is not None and self.owner_is_file:
            raise InputError("owner_is_file", True, "owner names a field already; leave one of the two out")
        for option, given in (("lowercase", self.lowercase or None), ("vocabulary", self.vocabulary)):
            if given is not None and self.tokens not in KINDS:
                raise InputError(option, given, "the file says which tokens there are; leave it out")
        if self.vocabulary is not None and self.vocabulary < 3:
            raise InputError("vocabulary", self.vocabulary, "there are padding, any other, and one at least; say 3")

    def load(self, folder: DataFolder) -> Dataset:
        """Return x int64 [n, length]; y int64 [n], or [n, length] with -100 where nothing follows."""
        fields = self._fields()
        read = read_documents(folder, self.path, fields)
        if self.test_path is not None:
            if len(read) > 1:
                fault = f"{self.path} has a test set of its own; leave it out"
                raise InputError(f"{TABLE}.test_path", self.test_path, fault)
            read = (*read, read_documents(folder, self.test_path, fields, f"{TABLE}.test_path")[0])
        letters = sum(len(text) for part in read for text in part.texts)
        hold_memory((letters, 8), PATH, self.path, "take a part of the texts")  # a letter may be a token, in a list
        return (self._classes if fields.labelled else self._language)(folder, read)

    def _tokens(self, folder: DataFolder, texts: Sequence[str]) -> Tokens:
        if self.tokens in KINDS:
            return learned(texts, self.tokens, self.lowercase, self.vocabulary)
        path = folder.resolve(self.tokens, f"{TABLE}.tokens")
        labelled = self._fields().labelled
        return from_file(path, labelled, self.length if labelled else None)

    def _fields(self) -> Fields:
        return Fields(self.text, self.label, self.owner, self.label_is_folder, self.owner_is_file)

    def _classes(self, folder: DataFolder, read: Sequence[Documents]) -> Dataset:
        """A class a text."""
        training, path = len(read[0].texts), read[0].files[0]
        texts = [text for part in read for text in part.texts]
        labels = np.concatenate([part.labels for part in read if part.labels is not None])
        y, classes = self._targets(read, labels, training)
        owner, owners = self._owners(read, training)
        train, test = self._split(read, owner, y, training)
        tokens = self._tokens(folder, [texts[row] for row in train])
        hold_memory((len(texts), 2 * self.length), f"{TABLE}.length", self.length, "take shorter sequences")
        x = np.full((len(texts), self.length), tokens.padding, np.int64)
        cut = 0
        for row, text in enumerate(texts):
            found = tokens.encode(text)
            cut += len(found) > self.length
            if not found:
                raise InputError(PATH, str(path), f"text {row + 1} has no token: {text[:40]!r}; leave it out")
            x[row, : len(found)] = found[: self.length]
        told = {**tokens.told, "cut": cut, "classes": classes, "owners": owners}
        owned = owner is not None and not (owner[test] < 0).any()
        return Dataset(
            path.stem,
            x[train],
            y[train],
            x[test],
            y[test],
            len(classes),
            None if owner is None else owner[train],
            owner[test] if owner is not None and owned else None,
            vocabulary=tokens.vocabulary,
            told=told,
            drawn=len(read) == 1,
            padding=tokens.padding,
        )

    def _split(
        self, read: Sequence[Documents], owner: Indices | None, y: Array | None, training: int
    ) -> tuple[Indices, Indices]:
        """Which texts are trained on, and which are the test set."""
        if len(read) > 1:
            hold_unsplit(self.test_share, f"{read[1].files[0]} is of")
            return np.arange(training), np.arange(training, training + len(read[1].texts))
        return split_off(owner if owner is not None else y, training, self.test_share, self.split_seed)

    def _targets(self, read: Sequence[Documents], labels: Array, training: int) -> tuple[Array, list[str]]:
        classes, path = read[0].classes, read[0].files[0]
        if not classes:
            return coded_targets(labels, training, "classification", path, ["label", "label"])
        wrong = (labels < 0) | (labels >= len(classes)) if labels.dtype.kind in "iu" else np.ones(len(labels), bool)
        if wrong.any():
            row = int(np.argmax(wrong))
            fault = f"text {row + 1} has the label {labels[row]}, which is none of the {len(classes)} classes"
            raise InputError(PATH, str(path), f"{fault}; name a split that has labels")
        return labels.astype(np.int64), classes

    def _owners(self, read: Sequence[Documents], training: int) -> tuple[Indices | None, list[str]]:
        held = [part.owners for part in read if part.owners is not None]
        if not held:
            return None, []
        return coded_owners(np.concatenate(held), training, read[0].files[0], ["owner", "owner"])

    def _language(self, folder: DataFolder, read: Sequence[Documents]) -> Dataset:
        """Every next token."""
        training = len(read[0].texts)
        owner, owners = self._owners(read, training)
        texts = [text for part in read for text in part.texts]
        cuts = None
        if read[0].whole and len(read) == 1:
            if self.split_seed:
                fault = "the last share of each text is the test set, so that nothing is drawn; leave it out"
                raise InputError(f"{TABLE}.split_seed", self.split_seed, fault)
            cuts = [len(text) - int(self.test_share * len(text)) for text in texts]
            parts = [[text[:cut] for text, cut in zip(texts, cuts, strict=True)]]
            parts += [[text[cut:] for text, cut in zip(texts, cuts, strict=True)]]
            rows = [np.arange(training)] * 2
        else:
            rows = list(self._split(read, owner, None, training))
            parts = [[texts[row] for row in part] for part in rows]
        tokens = self._tokens(folder, parts[0])
        made = [self._sequences(part, tokens) for part in parts]
        if not len(made[0][0]):
            raise InputError(PATH, str(read[0].files[0]), "no text has two tokens, of which one follows the other")
        of = [None if owner is None else owner[part][text] for part, (_, _, text) in zip(rows, made, strict=True)]
        if of[0] is not None and len(np.unique(of[0])) < len(owners):
            absent = owners[int(np.setdiff1d(np.arange(len(owners)), of[0])[0])]
            fault = f"the owner {absent} has no text with two tokens to train on; leave it out, or lower test_share"
            raise InputError(PATH, str(read[0].files[0]), fault)
        owned = of[1] is not None and not (of[1] < 0).any()
        return Dataset(
            read[0].files[0].stem,
            made[0][0],
            made[0][1],
            made[1][0],
            made[1][1],
            tokens.vocabulary,
            of[0],
            of[1] if owned else None,
            vocabulary=tokens.vocabulary,
            told={**tokens.told, "owners": owners},
            drawn=len(read) == 1 and cuts is None,
            padding=tokens.padding,
        )

    def _sequences(self, texts: Sequence[str], tokens: Tokens) -> tuple[Array, Array, Indices]:
        """Sequences of each text, one after another, the tokens that follow, and of which text each is."""
        encoded = [tokens.encode(text) for text in texts]
        counts = np.array([-(-(len(one) - 1) // self.length) if one else 0 for one in encoded], dtype=np.int64)
        total = int(counts.sum())
        hold_memory((total, 4 * self.length), f"{TABLE}.length", self.length, "take a part of the texts")
        x = np.full((total, self.length), tokens.padding, np.int64)
        y = np.full((total, self.length), IGNORED, np.int64)
        row = 0
        for one in encoded:
            for begin in range(0, len(one) - 1, self.length):
                held, after = one[begin : begin + self.length], one[begin + 1 : begin + 1 + self.length]
                x[row, : len(after)] = held[: len(after)]
                y[row, : len(after)] = after
                row += 1
        return x, y, np.repeat(np.arange(len(texts)), counts)
