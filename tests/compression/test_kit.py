"""What all compressors keep to."""

from fedsim.compression.half import Half
from fedsim.compression.integer import Integer
from fedsim.compression.low_rank import LowRank
from fedsim.compression.natural import Natural
from fedsim.compression.qsgd import QSGD
from fedsim.compression.random_k import RandomK
from fedsim.compression.sign import Sign
from fedsim.compression.terngrad import TernGrad
from fedsim.compression.top_k import TopK
from fedsim.testing import conformance

RATIO = {
    "k": (7, {"k": 3, "ratio": None}),
    "ratio": (0.5, {"k": None, "ratio": 0.2}),
    "per": ("layer", {"k": None, "ratio": 0.2}),
}
TestTopK = conformance(TopK(ratio=0.1), others=RATIO)
TestTopKByRice = conformance(TopK(k=3, index="rice"), others=RATIO)
TestRandomK = conformance(RandomK(ratio=0.1), others=RATIO)
TestQSGD = conformance(QSGD(levels=4))
TestQSGDByElias = conformance(QSGD(levels=4, code="elias", per="layer"))
TestTernGrad = conformance(TernGrad())
TestNatural = conformance(Natural())
TestSign = conformance(Sign())
TestHalf = conformance(Half())
TestHalfOfSinglesRange = conformance(Half(format="bf16"))
TestInteger = conformance(Integer(per=16))
TestIntegerAtRandom = conformance(Integer(bits=4, rounding="random"))
TestLowRank = conformance(LowRank(rank=1))
