"""Attention: every backend gives the same numbers or says why it can't; maps are what attention really weighs by."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dinov2.models.attention import Backend, Shape, attend, attention_weights, cumulative_lengths
from dinov2.models.params import ViTParams
from dinov2.models.vit import VisionTransformer
from dinov2.params import InputError

CPU = torch.device("cpu")
SHAPES: list[Shape] = [(2, 19), (3, 7)]
NUM_TOKENS = 2 * 19 + 3 * 7
VIT = ViTParams(
    patch_size=14,
    dim=32,
    depth=3,
    heads=4,
    ffn="mlp",
    num_registers=2,
    layerscale=1.0,
    drop_path=0.0,
    image_size_px=56,
    interpolate_offset=0.0,
    interpolate_antialias=True,
)


def draw_qkv(dtype: torch.dtype = torch.float32, *, scale: float = 1.0, device: torch.device = CPU) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(NUM_TOKENS, 3, 4, 16, generator=generator)).to(device, dtype)


def by_the_formula(qkv: Tensor, shapes: list[Shape]) -> Tensor:
    """Sample by sample and head by head, in float64."""
    rows = []
    lengths = [length for samples, length in shapes for _ in range(samples)]
    for sample in qkv.double().split(lengths):
        q, k, v = sample.unbind(1)
        heads = [
            torch.softmax(q[:, h] @ k[:, h].T / q.shape[-1] ** 0.5, dim=1) @ v[:, h] for h in range(q.shape[1])
        ]
        rows.append(torch.cat(heads, dim=1))
    return torch.cat(rows)


def with_gradient(f: Callable[[Tensor], Tensor], qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient of a weighted sum of it."""
    leaf = qkv.clone().requires_grad_()
    output = f(leaf)
    weights = torch.linspace(-1, 1, output.numel(), device=qkv.device).view_as(output)
    (output * weights).sum().backward()
    assert leaf.grad is not None
    return output.detach(), leaf.grad


@pytest.mark.parametrize("shapes", [SHAPES, [(1, NUM_TOKENS)], [(NUM_TOKENS, 1)]])
def test_sdpa_is_the_formula_within_each_sample(shapes: list[Shape]) -> None:
    qkv = draw_qkv()
    output, gradient = with_gradient(lambda x: attend(x, shapes, "sdpa"), qkv)
    expected, expected_gradient = with_gradient(lambda x: by_the_formula(x, shapes), qkv.double())
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", ["short", "long"])
def test_half_precision_on_a_cpu_is_near_the_formula(
    dtype: torch.dtype, lengths: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinov2.models.attention.LONGEST_EXPLICIT", 512 if lengths == "short" else 0)
    qkv = draw_qkv(dtype)
    output, gradient = with_gradient(lambda x: attend(x, SHAPES, "sdpa"), qkv)
    expected, expected_gradient = with_gradient(lambda x: by_the_formula(x, SHAPES), qkv.double())
    assert output.dtype == gradient.dtype == dtype
    for value, reference in ((output, expected), (gradient, expected_gradient)):
        assert (value.double() - reference).norm() < 0.02 * reference.norm()


def test_large_logits_stay_finite() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        output, gradient = with_gradient(lambda x: attend(x, SHAPES, "sdpa"), draw_qkv(dtype, scale=100))
        assert output.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", ["xformers", "varlen"])
def test_cuda_only_backend_on_a_cpu_is_refused(backend: Backend) -> None:
    with pytest.raises(InputError, match=rf"'{backend}', which needs a GPU, but runs on cpu; set it to 'sdpa'"):
        attend(draw_qkv(torch.bfloat16), SHAPES, backend)
    model = VisionTransformer(VIT, attention=backend)
    with pytest.raises(InputError, match=backend):
        model(torch.randn(1, 3, 56, 56))


def test_absent_xformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from dinov2.models.attention import _import_xformers

    monkeypatch.setitem(sys.modules, "xformers.ops", None)  # as if it were not installed
    with pytest.raises(InputError, match="install the gpu extra or set 'sdpa'"):
        _import_xformers()


def test_starts_of_samples_are_built_once_and_serve_a_training() -> None:
    with torch.inference_mode():
        starts = cumulative_lengths(tuple(SHAPES), CPU)
    assert starts.tolist() == [0, 19, 38, 45, 52, 59]
    assert starts.dtype == torch.int32
    assert not starts.is_inference()
    assert cumulative_lengths(((2, 19), (3, 7)), CPU) is starts
    assert cumulative_lengths(((3, 7), (2, 19)), CPU) is not starts


def run_without_shape_checks(code: str) -> None:
    """Run `code` in a process of its own: what checks shapes in tests can't be compiled."""
    imports = "import torch\nfrom dinov2.models.attention import attend, cumulative_lengths\n"
    result = subprocess.run([sys.executable, "-c", imports + code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_starts_of_samples_are_a_constant_of_a_compiled_graph() -> None:
    run_without_shape_checks("""
import warnings
warnings.simplefilter("error")  # the compiler warns when it traces what is cached
def lengths(x, shapes):
    return cumulative_lengths(tuple(shapes), x.device).diff() * x

compiled = torch.compile(lengths, backend="eager", fullgraph=True, dynamic=False)
assert compiled(torch.ones(1), [(2, 19), (3, 7)]).tolist() == [19, 19, 7, 7, 7]
assert compiled(torch.ones(1), [(1, 4)]).tolist() == [4]
""")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["xformers", "varlen"])
@pytest.mark.parametrize("shapes", [SHAPES, [(1, NUM_TOKENS)]])
def test_gpu_backend_equals_sdpa(backend: Backend, shapes: list[Shape]) -> None:
    if backend == "xformers":
        pytest.importorskip("xformers")
    qkv = draw_qkv(torch.bfloat16, device=torch.device("cuda"))
    output, gradient = with_gradient(lambda x: attend(x, shapes, backend), qkv)
    expected, expected_gradient = with_gradient(lambda x: attend(x, shapes, "sdpa"), qkv)
    for value, reference in ((output, expected), (gradient, expected_gradient)):
        assert (value.float() - reference.float()).norm() < 0.01 * reference.float().norm()


@pytest.mark.gpu
def test_varlen_in_single_precision_is_refused() -> None:
    with pytest.raises(InputError, match=r"torch.float32; set precision to bf16"):
        attend(draw_qkv(device=torch.device("cuda")), SHAPES, "varlen")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["sdpa", "varlen"])
def test_gpu_backend_compiles_without_a_break(backend: Backend) -> None:
    run_without_shape_checks(f"""
qkv = torch.randn(59, 3, 4, 16, device="cuda", dtype=torch.bfloat16)
compiled = torch.compile(attend, fullgraph=True, dynamic=False)
for shapes in ([(2, 19), (3, 7)], [(1, 59)]):
    difference = compiled(qkv, shapes, {backend!r}).float() - attend(qkv, shapes, {backend!r}).float()
    assert difference.abs().max() < 0.02
""")


def make_vit(num_registers: int) -> VisionTransformer:
    """A network that attends unevenly: large weights."""
    torch.manual_seed(0)
    model = VisionTransformer(VIT.model_copy(update={"num_registers": num_registers}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("num_registers", [0, 2])
@pytest.mark.parametrize("block", [0, 1, -1])
@torch.no_grad()
def test_maps_times_values_are_the_attention_of_the_block(num_registers: int, block: int) -> None:
    model = make_vit(num_registers)
    images = torch.randn(2, 3, 28, 56)
    num_tokens = 1 + num_registers + 8
    seen: list[Tensor] = []

    attention = model.get_submodule(f"blocks.{block % 3}.attn")
    attention.get_submodule("qkv").register_forward_hook(lambda *call: seen.append(call[2]))
    attention.get_submodule("proj").register_forward_pre_hook(lambda _module, inputs: seen.extend(inputs))
    model(images)
    qkv, mixed = seen

    maps = model.attention_maps(images, block)
    assert maps.shape == (2, 4, num_tokens, num_tokens)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 4, num_tokens))
    assert maps.max() > 3 / num_tokens  # uneven, so that a wrong one would show
    values = qkv.view(2, num_tokens, 3, 4, 8)[:, :, 2].transpose(1, 2)
    torch.testing.assert_close((maps @ values).transpose(1, 2).reshape(mixed.shape), mixed, rtol=1e-5, atol=1e-5)


def test_maps_of_other_blocks_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Shape] = []

    def counted(qkv: Tensor, shape: Shape) -> Tensor:
        calls.append(shape)
        return attention_weights(qkv, shape)

    monkeypatch.setattr("dinov2.models.vit.attention_weights", counted)
    make_vit(2).attention_maps(torch.randn(1, 3, 56, 56), 2)
    assert calls == [(1, 19)]


def test_absent_block_is_named() -> None:
    model = make_vit(0)
    images = torch.randn(1, 3, 28, 28)
    with pytest.raises(InputError, match="3 blocks"):
        model.attention_maps(images, 3)
    for blocks in (4, 0, [], [1, 3], [-1]):
        with pytest.raises(InputError, match="3 blocks"):
            model.intermediate(images, blocks, norm=True)


def test_intermediate_gives_the_blocks_asked_for_in_their_order() -> None:
    model = make_vit(2)
    images = torch.randn(2, 3, 28, 56)
    every = model.intermediate(images, 3, norm=False)
    assert [f.registers.shape for f in every] == [(2, 2, 32)] * 3
    chosen = model.intermediate(images, [2, 0], norm=False)
    torch.testing.assert_close(chosen, [every[2], every[0]], rtol=0, atol=0)
    normed = model.intermediate(images, [1], norm=True)[0]
    torch.testing.assert_close(normed.patches, model.norm(every[1].patches))
    assert not torch.allclose(normed.patches, every[1].patches)
    torch.testing.assert_close(model.intermediate(images, 1, norm=True)[0], model.features(images))
