"""Other packages as contenders: each called as its documentation has it, by modules of the same signatures."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from fastdl.bench import attention_peers, norm_peers, onnx_peers, peers, registry
from fastdl.bench.cases import Case
from fastdl.bench.correctness import Judge
from fastdl.bench.harness import Settings, measure
from fastdl.bench.operands import make_operands
from fastdl.bench.peers import Peer, not_installed
from fastdl.bench.timing import Effort

CPU = torch.device("cpu")
TINY = Effort(seconds=0.0, warm_up=0.0, batch=0.0, least_rounds=2)
ROWS = Case((3, 5, 16), "rows", "float32", "identity", "a test")
RESIDUAL = replace(ROWS, variant="residual")
HEADS = Case((2, 3, 8, 16), "packed", "bfloat16", "identity", "a test")
GROUP = Case((2, 8, 4, 4), "nchw", "float32", "silu", "a test", 4)


def judge(name, case):
    benchmark = registry.load(name)
    return Judge(benchmark, case, make_operands(benchmark, case, CPU, sets=2))


@pytest.fixture
def module(monkeypatch):
    """Puts modules of these names there, with these contents."""

    def put(name, **contents):
        made = ModuleType(name)
        for key, value in contents.items():
            setattr(made, key, value)
        parent = name.rpartition(".")[0]
        if parent and parent not in sys.modules:
            put(parent)
        if parent:
            monkeypatch.setattr(sys.modules[parent], name.rpartition(".")[2], made, raising=False)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return put


class Liger:
    """The autograd functions of liger-kernel; their gradients may not be written into those of the outputs."""

    class LigerLayerNormFunction:
        @staticmethod
        def apply(X, W, B, eps):
            assert eps == 1e-5  # torch's, and too small to be told by an answer
            return F.layer_norm(X, W.shape, W, B, eps)

    class LigerRMSNormFunction:
        @staticmethod
        def apply(X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
            assert (eps, offset, casting_mode, in_place) == (1e-6, 0.0, "llama", False)
            return F.rms_norm(X, W.shape, W, eps)

    class LigerFusedAddRMSNormFunction:
        @staticmethod
        def apply(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False):
            assert (eps, offset, casting_mode, in_place) == (1e-6, 0.0, "llama", False)
            return F.rms_norm(X + R, W.shape, W, eps), X + R


def fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
    assert eps == 1e-5
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
    assert eps == 1e-6
    return F.rms_norm(input, normalized_shape, weight, eps)


@pytest.fixture
def norm_packages(module):
    module("liger_kernel")
    module("liger_kernel.ops")
    module("liger_kernel.ops.layer_norm", LigerLayerNormFunction=Liger.LigerLayerNormFunction)
    module("liger_kernel.ops.rms_norm", LigerRMSNormFunction=Liger.LigerRMSNormFunction)
    module("liger_kernel.ops.fused_add_rms_norm", LigerFusedAddRMSNormFunction=Liger.LigerFusedAddRMSNormFunction)
    functions = {f.__name__: f for f in (fused_layer_norm_affine, fused_rms_norm_affine)}
    module("apex")
    module("apex.normalization")
    module("apex.normalization.fused_layer_norm", **functions)


@pytest.mark.usefixtures("norm_packages")
@pytest.mark.parametrize("case", [ROWS, RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("package", ["liger", "apex"])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms_of_other_packages_give_the_benchmarks_answer(name, package, case):
    assert judge(name, case).complaint(getattr(norm_peers, f"{package}_{name}")(case)) is None


@pytest.mark.usefixtures("norm_packages")
def test_another_packages_wrong_answer_is_seen(module):
    class WithoutEpsilon(Liger.LigerLayerNormFunction):
        @staticmethod
        def apply(X, W, B, eps):
            return F.layer_norm(X, W.shape, W, B, eps + 0.1)

    module("liger_kernel.ops.layer_norm", LigerLayerNormFunction=WithoutEpsilon)
    assert "wrong answer: the output" in judge("layer_norm", ROWS).complaint(norm_peers.liger_layer_norm(ROWS))


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
    """(N, L, H, E), the last dimension contiguous, as FlashAttention has it."""
    assert q.shape[1] == 8
    assert {t.stride(-1) for t in (q, k, v)} == {1}
    turned = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(*turned, is_causal=causal).transpose(1, 2)


@pytest.mark.parametrize("variant", ["", "causal"])
@pytest.mark.parametrize("layout", ["packed", "separate"])
def test_flash_attn_is_called_with_lengths_before_heads(module, variant, layout):
    module("flash_attn", flash_attn_func=flash_attn_func)
    module("flash_attn_interface", flash_attn_func=lambda *args, **kw: (flash_attn_func(*args, **kw), "log-sum-exp"))
    case = replace(HEADS, variant=variant, layout=layout)
    for load in (attention_peers.flash_attn, attention_peers.flash_attn_3):
        assert judge("attention", case).complaint(load(case)) is None


class LowerTriangularMask:
    pass


def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
    turned = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    if isinstance(attn_bias, LowerTriangularMask):
        return F.scaled_dot_product_attention(*turned, is_causal=True).transpose(1, 2)
    if attn_bias is not None:
        assert attn_bias.shape == (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    return F.scaled_dot_product_attention(*turned, attn_mask=attn_bias).transpose(1, 2)


@pytest.mark.parametrize("variant", ["", "causal", "bias"])
def test_xformers_is_called_with_lengths_before_heads(module, variant):
    module("xformers")
    module("xformers.ops", memory_efficient_attention=memory_efficient_attention,
           LowerTriangularMask=LowerTriangularMask)  # fmt: skip
    case = replace(HEADS, variant=variant, dtype="float32")
    assert judge("attention", case).complaint(attention_peers.xformers(case)) is None
    assert attention_peers.xformers(replace(case, variant="padding")) is None


def test_what_a_peer_does_not_serve_it_declines(module):
    module("flash_attn", flash_attn_func=flash_attn_func)
    for load in (attention_peers.flash, attention_peers.flash_attn):
        assert load(HEADS) is not None
        assert load(replace(HEADS, dtype="float32")) is None
        assert load(replace(HEADS, variant="bias")) is None
    assert attention_peers.cudnn(replace(HEADS, dtype="float32")) is None
    assert attention_peers.math(replace(HEADS, size=(1, 16, 16384, 128))) is None
    for case in (replace(ROWS, dtype="bfloat16"), replace(GROUP, layout="channels_last"), replace(HEADS)):
        assert not onnx_peers.served(case)
    assert onnx_peers.conv_norm_act(replace(GROUP, variant="training")) is None


def test_products_one_after_the_other_give_attentions_answer():
    for variant in ("", "causal", "padding", "bias"):
        case = replace(HEADS, variant=variant, dtype="float32")
        assert judge("attention", case).complaint(attention_peers.math(case)) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("variant", ["", "causal", "padding", "bias"])
def test_flex_attention_gives_attentions_answer_on_the_cpu(variant):
    case = replace(HEADS, variant=variant, dtype="float32", size=(2, 3, 32, 16))
    complaint = judge("attention", case).complaint(attention_peers.flex_forward(case), only_forward=True)
    assert complaint is None


def test_every_package_stands_in_the_list_of_its_op():
    names = {name: [peer.name for peer in registry.load(name).peers] for name in registry.names()}
    assert names["attention"] == [
        "flash", "cudnn", "efficient", "flex", "math", "flex", "flash-attn", "flash-attn 3", "xformers", "onnxruntime"
    ]  # fmt: skip
    assert names["group_norm"] == ["in place", "apex", "liger", "onnxruntime"]
    assert names["layer_norm"] == names["rms_norm"] == ["apex", "liger", "onnxruntime"]
    assert names["conv_norm_act"] == ["in place", "onnxruntime"]
    for name in registry.names():
        for device in ("cpu", "cuda"):
            on_it = [peer.name for peer in registry.load(name).peers if device in peer.devices]
            assert len(set(on_it)) == len(on_it)


def test_a_peer_needs_all_of_its_modules(module):
    peer = Peer("both", lambda: lambda case: None, package="first_module second_module")
    assert not peer.installed()
    module("first_module")
    assert not peer.installed()
    assert not_installed([peer], "cpu") == {"both": "first_module second_module"}
    module("second_module")
    assert peer.installed()
    assert not_installed([peer], "cpu") == {}
    elsewhere = replace(peer, package="no_such_module", devices=frozenset({"cuda"}))
    assert not_installed([elsewhere], "cpu") == {}
    assert not elsewhere.available("cuda")


def forward_only(wrong=0.0):
    """A peer without a backward pass, off by so much."""

    def function(input, weight, bias):
        assert not torch.is_grad_enabled()
        return F.silu(F.group_norm(input, 4, weight, bias)).detach() + wrong

    return Peer("inference", lambda: lambda case: function, only_forward=True)


def test_a_peer_without_backward_is_timed_forward_and_judged_by_its_output():
    benchmark = replace(registry.load("group_norm"), peers=(forward_only(),))
    record = measure(benchmark, GROUP, Settings(effort=TINY, compile=False))
    assert [list(m.times) for m in record.measurements] == [["ours", "eager", "inference"], ["ours", "eager"]]
    assert record.rejected == {}
    assert list(record.saved_bytes) == ["ours", "eager"]
    wrong = replace(benchmark, peers=(forward_only(0.1),))
    record = measure(wrong, GROUP, Settings(effort=TINY, compile=False))
    assert [list(m.times) for m in record.measurements] == [["ours", "eager"]] * 2
    assert record.rejected["inference"].startswith("wrong answer: the output is off by 1.00e-01")


def test_a_peer_made_by_compilation_is_left_out_with_it():
    made = Peer("compiled peer", lambda: pytest.fail("nothing may be compiled"), compiles=True)
    benchmark = replace(registry.load("group_norm"), peers=(made,))
    record = measure(benchmark, GROUP, Settings(effort=TINY, compile=False))
    assert list(record.measurements[0].times) == ["ours", "eager"]


@pytest.mark.skipif(not onnx_peers.peer(onnx_peers.layer_norm).installed(), reason="needs onnxruntime and onnx")
@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("group_norm", GROUP),
        ("layer_norm", ROWS),
        ("layer_norm", RESIDUAL),
        ("rms_norm", ROWS),
        ("rms_norm", RESIDUAL),
        ("conv_norm_act", Case((2, 8, 6, 6), "nchw", "float32", "relu", "ResNet-50, stage 1", variant="inference")),
        ("conv_norm_act",
         Case((2, 8, 6, 6), "nchw", "float32", "relu", "ResNet-50, stage 1, pointwise", variant="inference")),
        *(("attention", replace(HEADS, layout="separate", dtype="float32", variant=v)) for v in
          ("", "causal", "padding", "bias")),
    ],
)  # fmt: skip
def test_onnxruntime_gives_the_benchmarks_answer(name, case):
    function = getattr(onnx_peers, "group_norm_silu" if name == "group_norm" else name)(case)
    checked = judge(name, case)
    assert checked.complaint(function, only_forward=True) is None
    # Other weights, another model: the answer is not that of the first ones.
    assert checked.complaint(function, only_forward=True) is None


def test_importing_a_peer_costs_nothing_until_it_is_there(monkeypatch):
    monkeypatch.setattr(peers, "_importable", lambda name: False)
    for name in registry.names():
        for peer in registry.load(name).peers:
            assert peer.available("cpu") == (peer.package is None and "cpu" in peer.devices)
