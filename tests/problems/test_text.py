"""Texts: where they are found, what their tokens are, and what a language model is to learn."""

import json

import numpy as np
import pandas
import pyarrow
import pytest
from datafiles import NOWHERE, refusal
from pyarrow import parquet

from fedsim.core.data_files import DataFolder
from fedsim.problems.datasets.text import Text

TEXTS = ["a a b", "b c", "A a d!", "c c c c c", "a", "b a"] * 5
ROWS = [{"text": text, "label": f"k{row % 2}", "who": row % 3} for row, text in enumerate(TEXTS)]
OPTIONS = {"label": "label", "owner": "who", "length": 4, "test_share": 0.2}


def write(folder):
    """The same texts in every kind of file."""
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (folder / "list.json").write_text(json.dumps(ROWS))
    pandas.DataFrame(ROWS).to_csv(folder / "table.csv", index=False)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "table.parquet")
    return DataFolder(folder)


@pytest.mark.parametrize("path", ["lines.jsonl", "list.json", "table.csv", "table.parquet"])
def test_texts_of_every_kind_of_file_are_the_same(path, tmp_path):
    folder = write(tmp_path)
    wanted, found = Text(path="lines.jsonl", **OPTIONS).load(folder), Text(path=path, **OPTIONS).load(folder)
    for name in ("x", "y", "x_test", "y_test", "owner", "owner_test"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
    assert found.told["classes"] == ["k0", "k1"]
    assert (found.x.shape, found.x_test.shape, found.num_classes) == ((24, 4), (6, 4), 2)


def test_words_are_numbered_by_how_often_they_come_in_training_texts(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "b a a", "y": 1}\n{"text": "c, a b d", "y": 0}\n')
    (tmp_path / "test.jsonl").write_text('{"text": "z B a", "y": 1}')
    options = {"path": "train.jsonl", "label": "y", "test_path": "test.jsonl", "length": 5}
    found = Text(**options).load(DataFolder(tmp_path))
    # a comes three times, b twice, then ',', c and d; 0 is padding and 1 what no training text has.
    assert found.x.tolist() == [[3, 2, 2, 0, 0], [5, 4, 2, 3, 6]]
    assert found.x_test.tolist() == [[1, 1, 2, 0, 0]]
    assert (found.vocabulary, found.padding, found.drawn) == (7, 0, False)
    assert found.told["kept"] == 5
    small = Text(**options | {"length": 2}, lowercase=True, vocabulary=4).load(DataFolder(tmp_path))
    assert small.x_test.tolist() == [[1, 3]]
    assert small.x.tolist() == [[3, 2], [1, 1]]
    assert (small.vocabulary, small.told["different"], small.told["kept"], small.told["cut"]) == (4, 5, 2, 3)
    letters = Text(**options, tokens="characters").load(DataFolder(tmp_path))
    assert letters.x[0].tolist() == [4, 2, 3, 2, 3]  # ' ' comes five times, a thrice, b twice
    assert letters.vocabulary == 2 + len(set("b a ac, a b d"))


def test_a_language_model_learns_every_next_token(tmp_path, monkeypatch):
    """Five letters after another in a sequence; what is behind the last has no next one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("abcdefgh" + "ab")
    (tmp_path / "two.txt").write_text("ba")
    options = {"path": "*.txt", "tokens": "characters", "length": 5, "owner_is_file": True}
    found = Text(**options).load(DataFolder(tmp_path))
    # Of the first the last fifth is the test set. Of training letters a and b come twice: a b c d e f g h are 2 to 9.
    assert found.x.tolist() == [[2, 3, 4, 5, 6], [7, 8, 0, 0, 0], [3, 0, 0, 0, 0]]
    assert found.y.tolist() == [[3, 4, 5, 6, 7], [8, 9, -100, -100, -100], [2, -100, -100, -100, -100]]
    assert (found.x_test.tolist(), found.y_test.tolist()) == ([[2, 0, 0, 0, 0]], [[3, -100, -100, -100, -100]])
    assert (found.owner.tolist(), found.owner_test.tolist()) == ([0, 0, 1], [0])
    assert (found.num_classes, found.vocabulary, found.told["owners"]) == (10, 10, ["one", "two"])
    assert not found.drawn
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "three.txt").write_text("abz")
    other = Text(**options, test_path="test").load(DataFolder(tmp_path))
    assert len(np.unique(other.x)) == 9
    assert other.y_test.tolist() == [[3, 1, -100, -100, -100]]
    assert other.owner_test is None


def test_texts_of_a_language_model_that_are_rows_are_dealt_whole(tmp_path):
    write(tmp_path)
    found = Text(path="lines.jsonl", length=4, owner="who").load(DataFolder(tmp_path))
    assert found.drawn
    assert found.x.shape[1:] == found.y.shape[1:] == (4,)
    assert len(found.x) + len(found.x_test) == 5 * 5  # 'a' has no next word
    assert np.array_equal(found.y[found.y >= 0][:-1] > 0, np.ones((found.y >= 0).sum() - 1, bool))


def test_a_folder_of_texts_has_a_class_a_folder(tmp_path):
    for part, count in (("train", 5), ("test", 2)):
        for kind in ("neg", "pos"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(count):
                (tmp_path / part / kind / f"{number}.txt").write_text(f"this is {kind} {number}")
    found = Text(path="train", test_path="test", label_is_folder=True, length=3).load(DataFolder(tmp_path))
    assert (found.told["classes"], found.y.tolist(), found.y_test.tolist()) == (
        ["neg", "pos"],
        [0] * 5 + [1] * 5,
        [0, 0, 1, 1],
    )
    assert found.told["cut"] == 14


def test_splits_of_a_saved_data_set_are_found(tmp_path):
    (tmp_path / "data").mkdir()
    features = {"label": {"_type": "ClassLabel", "names": ["z", "a", "m"]}}
    for split, count in (("train", 12), ("test", 4)):
        rows = [{"text": TEXTS[row], "label": row % 2} for row in range(count)]
        told = {"huggingface": json.dumps({"info": {"features": features}})}
        table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(told)
        parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    found = Text(path=str(tmp_path), label="label", length=4).load(DataFolder(tmp_path))
    assert (len(found.x), len(found.x_test), found.num_classes, found.told["classes"]) == (12, 4, 3, ["z", "a", "m"])
    again = Text(path=str(tmp_path), label="label", test_path="data/test-00000-of-00001.parquet")
    refusal(again, DataFolder(tmp_path), "problem.dataset.test_path", "has a test set of its own")


def test_a_file_of_the_library_tokenizers_says_what_tokens_are(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 3, "a": 0, "b": 1, "[UNK]": 2, "[CLS]": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 4)])
    made.enable_padding(pad_id=0, length=64)
    made.enable_truncation(1)
    (tmp_path / "lines.jsonl").write_text('{"text": "b a a a", "y": 1}\n{"text": "c", "y": 0}\n{"text": "a", "y": 0}')

    def load(**options):
        made.save(str(tmp_path / "tokenizer.json"))
        return Text(path="lines.jsonl", tokens="tokenizer.json", test_share=0, **options).load(DataFolder(tmp_path))

    found = load(label="y", length=3)
    assert (found.padding, found.vocabulary) == (0, 5)  # as the file says
    assert found.x.tolist() == [[4, 1, 0], [4, 2, 0], [4, 0, 0]]
    made.no_padding()
    assert (load(label="y", length=3).padding, load(label="y", length=3).x[1].tolist()) == (3, [4, 2, 3])
    text = load(length=3)  # of a language model nothing is put around, and nothing cut off
    assert (text.x.tolist(), text.y.tolist()) == ([[1, 0, 0]], [[0, 0, 0]])
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2}))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    assert (load(label="y", length=2).padding, load(label="y", length=2).vocabulary) == (3, 4)
    (tmp_path / "lines.jsonl").write_text('{"text": "b d", "y": 1}\n{"text": "c", "y": 0}')
    with_unknown = Text(path="lines.jsonl", tokens="tokenizer.json", label="y", test_share=0)
    refusal(with_unknown, DataFolder(tmp_path), "problem.dataset.tokens", "cannot be read as a tokenizer of 'b d'")
    (tmp_path / "tokenizer.json").write_text("{}")
    refusal(with_unknown, DataFolder(tmp_path), "problem.dataset.tokens", "cannot be read as a tokenizer")


@pytest.mark.parametrize(
    ("name", "content", "options", "parts"),
    [
        ("a.jsonl", '{"text": 3}', {}, ["a.jsonl", "text is no text in row 1: '3'"]),
        ("a.jsonl", '{"text": "a"}\n{"x": 1}', {}, ["text is no text in row 2: 'None'"]),
        ("a.jsonl", '{"text": "a"}\n{', {}, ["a.jsonl", "cannot be read as JSON"]),
        pytest.param("a.jsonl", "[" * 100_000, {}, ["a.jsonl", "cannot be read as JSON"], id="deep"),
        ("a.jsonl", "", {}, ["is empty; remove it"]),
        ("a.jsonl", "[3]", {}, ["it is no list of objects, and has no object in each line"]),
        ("a.jsonl", '{"text": "a", "y": [1]}', {"label": "y"}, ["y is neither a text nor a number in row 1: '[1]'"]),
        ("a.jsonl", '{"text": "a", "y": 1}', {"label": "z"}, ["problem.dataset.label", "there are text, y"]),
        ("a.jsonl", '{"text": "a", "y": 1}', {"text": "body"}, ["problem.dataset.text", "there are text, y"]),
        ("a.jsonl", '{"text": "a b", "y": 1}', {"owner_is_file": True}, ["owner_is_file", "name the field, or column"]),
        ("a.jsonl", '{"text": "a"}', {}, ["no text has two tokens"]),
        ("a.jsonl", '{"text": " ", "y": 1}\n{"text": "b", "y": 2}', {"label": "y"}, ["text 1 has no token: ' '"]),
        ("a.csv", "text,y\na b,\nc,1\n", {"label": "y"}, ["y is neither a text nor a number in row 1: 'nan'"]),
        ("a.txt", "a b", {"label": "y"}, ["problem.dataset.label", "say label_is_folder = true"]),
        ("a.txt", "a b", {"owner": "y"}, ["problem.dataset.owner", "say owner_is_file = true"]),
        ("a.txt", b"\xff\xfe\xfa", {}, ["a.txt", "cannot be read as text of UTF-8"]),
        ("a.parquet", "text", {}, ["a.parquet"]),
    ],
)
def test_what_is_no_text_is_refused(name, content, options, parts, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal(Text(path=name, **options), DataFolder(tmp_path), *parts)


def test_files_of_several_kinds_and_owners_without_sequences_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a b")
    (tmp_path / "b.txt").write_text("a")
    (tmp_path / "c.jsonl").write_text("{}")
    refusal(Text(path=str(tmp_path / "*")), NOWHERE, "has files of several kinds, .json and .txt")
    owned = Text(path=str(tmp_path / "*.txt"), owner_is_file=True, test_share=0)
    refusal(owned, NOWHERE, "the owner b has no text with two tokens")


def test_more_than_the_memory_holds_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": "a b", "y": row % 2}) for row in range(40)))
    monkeypatch.setattr("fedsim.core.data_files.room", lambda: 40 * 3 * 32)
    Text(path="a.jsonl", label="y", length=12).load(DataFolder(tmp_path))
    refusal(Text(path="a.jsonl", label="y", length=13), DataFolder(tmp_path), "length", "take shorter sequences")
    monkeypatch.setattr("fedsim.core.data_files.room", lambda: 40 * 3 * 32 - 1)
    refusal(Text(path="a.jsonl", label="y", length=1), DataFolder(tmp_path), "take a part of the texts")
