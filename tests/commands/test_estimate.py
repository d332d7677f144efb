"""`glmtune estimate`: from the config alone, with what would make it fit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glmtune.commands.estimate import as_dict, lines, run, verdict
from glmtune.config import load_recipe
from glmtune.execution import Run
from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.runtime import UserError
from glmtune.training.memory import CONTEXT, GIB
from glmtune.training.placement import RESERVE, Place


@pytest.fixture(scope="module")
def chatglm_6b(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the config.json of ChatGLM-6B, and nothing else."""
    folder = tmp_path_factory.mktemp("chatglm-6b")
    ChatGLMConfig(dtype="float16").save_pretrained(folder)
    return str(folder)


def test_the_embedded_model_fits_anywhere() -> None:
    answer = run(memory="1GB")
    assert answer.spare > 0 and answer.remedy[0] == []
    assert verdict(answer).startswith("It fits a GPU of 1GB (1.00 GiB): ")


def test_sizes_of_chatglm_6b(chatglm_6b: str) -> None:
    told = as_dict(run(None, [f"model.path={chatglm_6b}", "training.batch_size=1"], "80GB"))
    assert (told["parameters"], told["trainable"]) == (6_173_286_400, 29_360_128)
    assert told["weights"] == 2 * told["parameters"]
    assert told["adapters"] == told["gradients"] == 4 * told["trainable"] == told["optimizer"] // 2
    assert told["peak"] == max(told["step"], told["judging"])
    assert told["fits"] is True and told["remedy"] == []


@pytest.mark.parametrize(
    ("memory", "settings"),
    [
        ("24GB", ["method={name: lora}"]),
        ("16GB", ["method={name: ptuning_v2}"]),
        ("8GB", ["method={name: lora, use_dora: true}"]),
        ("6GB", ["method={name: lora}", "training.batch_size=4"]),
        ("24GB", ["method={name: full}"]),
        ("12GB", ["method={name: freeze}"]),
        ("6GB", ["method={name: ptuning_v2}", "training.gradient_checkpointing=true", "training.batch_size=1"]),
    ],
)
def test_the_remedy_is_enough_and_no_more(chatglm_6b: str, memory: str, settings: list[str]) -> None:
    settings = [f"model.path={chatglm_6b}", *settings]
    answer = run(None, settings, memory)
    assert answer.spare < 0
    answered, _ = answer.remedy
    assert answered

    def spare(remedy: list[str]) -> int:
        found = run(None, [*settings, *remedy], memory)
        return found.spare - int(RESERVE * found.place.memory)

    assert spare(answered) >= 0
    for left_out in answered:
        fewer = [setting for setting in answered if setting != left_out]
        if "gradient_accumulation" in left_out:
            continue  # keeps the size of a step when the micro-batch shrinks
        try:
            assert spare(fewer) < 0, left_out
        except UserError as error:  # bits without the method that can learn beside them
            assert "method.name" in str(error)
    text = verdict(answer)
    assert f"It does not fit a GPU of {memory}" in text and "It would with" in text


def test_a_step_keeps_its_size(chatglm_6b: str) -> None:
    remedy = run(None, [f"model.path={chatglm_6b}", "training.batch_size=96"], "6GB").remedy[0]
    assert remedy is not None
    recipe = load_recipe(None, remedy)
    assert recipe.training.batch_size < 96
    assert recipe.training.batch_size * recipe.training.gradient_accumulation_steps >= 96


def test_what_cannot_fit_is_said(chatglm_6b: str) -> None:
    answer = run(None, [f"model.path={chatglm_6b}"], "2GB")
    remedy, smallest = answer.remedy
    assert remedy is None and smallest.peak < answer.estimate.peak
    assert "With every setting that saves memory it would still take" in verdict(answer)


def test_pissa_is_told_to_start_otherwise(chatglm_6b: str) -> None:
    """Its start needs the weights at 16 bits."""
    settings = [f"model.path={chatglm_6b}", "method={name: lora, init: pissa}", "training.batch_size=1"]
    answer = run(None, settings, "6GB")
    remedy, _ = answer.remedy
    assert remedy and {"method.init=default", "model.bits=4"} <= set(remedy)
    with pytest.raises(UserError, match=r"method\.init=pissa .* at full precision"):
        run(None, [*settings, "model.bits=4"], "6GB")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ([], "linear layers at 16 bits, the rest at 16"),
        (["model.dtype=float32"], "linear layers at 32 bits, the rest at 32"),
        (["model.bits=4", "model.quantize_embedding=true"], "linear layers at 4 bits, embedding at 8, the rest at 16"),
        (["method={name: full}"], "linear layers at 16 bits, the rest at 16, what learns at 32"),
    ],
)
def test_how_weights_are_stored(chatglm_6b: str, settings: list[str], text: str) -> None:
    answer = run(None, [f"model.path={chatglm_6b}", *settings], "80GB")
    assert next(meaning for part, _, meaning in lines(answer) if part == "weights") == text


def test_a_run_folder_is_a_recipe(tiny_run: Run) -> None:
    answer = run(str(tiny_run.folder.path), ["training.batch_size=2"])
    assert answer.estimate.batch == 2 and answer.estimate.trainable.parameters == 2 * 4 * (32 * 8 + 64 * 2)


def test_lengths(chatglm_6b: str) -> None:
    settings = [f"model.path={chatglm_6b}"]
    assert (run(None, settings).estimate.length, run(None, settings).estimate.target_length) == (128, 64)
    assert run(None, [*settings, "data.max_length=300"]).estimate.length == 300
    long = run(None, settings, length=1024, target_length=8).estimate
    assert (long.length, long.target_length) == (1024, 8)
    assert long.activations > run(None, settings).estimate.activations


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory": "much"}, r"--memory much: no size of a memory\. Write it as 8GB"),
        ({"memory": "0GB"}, "no size of a memory"),
        ({"length": 4096}, r"--length 4096: the model can take 2048 tokens\. Set at most 2048"),
        ({"length": 64, "target_length": 64}, r"--target-length 64: must be from 1 to 63"),
        ({"target_length": 0}, r"--target-length 0: must be from 1 to 127"),
        ({"length": 0}, r"--length 0: .* at least 2"),
        ({"devices": 0}, r"--devices 0: at least 1"),
        ({"sharding": "full"}, r"training\.sharding=full: one device has nobody to share with\. Add --devices 2"),
        ({"overrides": ["training.sharding=full"]}, r"one device has nobody to share with\. Add --devices 2"),
        ({"overrides": ["training.cpu_offload=true"]}, r"training\.cpu_offload=true: .*Add training\.sharding=full"),
        (
            {"devices": 2, "sharding": "full", "overrides": ["training.optimizer=muon"]},
            r"training\.sharding=full: training\.optimizer=muon needs whole weights\. Use adamw",
        ),
        (
            {"overrides": ["training.devices=2", "training.sharding=full", "model.dtype=float16"]},
            r"training\.sharding=full: model\.dtype=float16 has its loss scaled",
        ),
        ({"overrides": ["data.max_length=4096"]}, r"data\.max_length=4096: the model can take 2048"),
        ({"overrides": ["method.rank=0"]}, r"method\.rank"),
        (
            {"overrides": ["method={name: full}", "model.bits=4"]},
            r"method\.name=full changes the weights.*model\.bits=4",
        ),
        ({"overrides": ["method={name: freeze}", "model.quantize_embedding=true"]}, r"model\.quantize_embedding=true"),
        ({"overrides": ["method={name: freeze, num_layers: 40}"]}, r"method\.num_layers=40: the model has 28 layers"),
        ({"overrides": ["method={name: lora, target_modules: '.*'}"]}, r"known only once the model is loaded"),
    ],
)
def test_bad_input(chatglm_6b: str, arguments: dict[str, Any], message: str) -> None:
    overrides = [f"model.path={chatglm_6b}", *arguments.pop("overrides", [])]
    with pytest.raises(UserError, match=message):
        run(None, overrides, **arguments)


FULL = ["method={name: full}", "training.gradient_checkpointing=true", "training.batch_size=1"]
PARTS = {"weights": "base", "adapters": "beside", "optimizer": "moments"}  # of each device, and whole
OUTSIDE = 130528 * 4096 + 2 * 4096  # ChatGLM-6B's embedding and last norm


@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize("method", ["full", "freeze", "lora", "ptuning_v2"])
def test_shares_add_up(chatglm_6b: str, devices: int, method: str) -> None:
    settings = [f"model.path={chatglm_6b}", *FULL, f"method={{name: {method}}}"]
    alone = run(None, settings, "80GB").estimate
    shared = run(None, settings, "80GB", devices=devices, sharding="full").estimate
    for part, whole in PARTS.items():
        assert getattr(alone, part) == getattr(alone, whole) == getattr(shared, whole)
        assert getattr(alone, whole) <= devices * getattr(shared, part) < getattr(alone, whole) + devices
    assert shared.gradients == -(-alone.gradients // devices) and shared.buckets == 0
    assert shared.largest_block == (alone.architecture.parameters - OUTSIDE) // 28
    assert shared.activations == alone.activations and shared.disk == alone.disk
    assert shared.inference(64) == alone.inference(64)
    held = shared.weights + shared.adapters + shared.optimizer
    assert held + shared.gathered < shared.step
    assert shared.judging == alone.judging + held - alone.optimizer


def test_the_recipe_says_how_many_divide_the_weights(chatglm_6b: str) -> None:
    settings = [f"model.path={chatglm_6b}", *FULL]
    asked = [*settings, "training.devices=8", "training.sharding=full"]
    by_recipe, by_flags = run(None, asked, "80GB"), run(None, settings, "80GB", devices=8, sharding="full")
    assert as_dict(by_recipe) == as_dict(by_flags) and by_recipe.estimate.is_sharded
    other = run(None, asked, "80GB", devices=4, sharding="none").estimate
    assert (other.devices, other.is_sharded) == (4, False)
    assert run(None, [*settings, "training.devices=all"], "80GB").estimate.devices == 1


@pytest.mark.parametrize("devices", [1, 8])
def test_shares_in_the_memory_of_the_machine(chatglm_6b: str, devices: int) -> None:
    settings = [f"model.path={chatglm_6b}", *FULL, "training.sharding=full", "training.cpu_offload=true"]
    placement = run(None, settings, "24GB", devices=devices)
    found = placement.estimate
    assert found.weights == found.optimizer == found.gradients == found.adapters == 0
    assert found.host == -(-(found.base + found.moments + 4 * found.trainable.parameters) // devices)
    assert found.step > found.gathered > 4 * OUTSIDE and found.judging > found.base
    assert "host" in {part for part, _, _ in lines(placement)} and as_dict(placement)["host"] == found.host
    on_cpu = run(None, settings, "24GB", device="cpu", devices=devices).estimate
    assert on_cpu.host == 0 and on_cpu.weights > 0  # which is the same memory


def test_packed_weights_are_divided(chatglm_6b: str) -> None:
    """As a CPU has them, on a GPU, too."""
    settings = [f"model.path={chatglm_6b}", "model.bits=4", "training.batch_size=1", "generation.batch_size=1"]
    alone = run(None, settings, "24GB", device="cpu").estimate
    shared = run(None, settings, "24GB", devices=8, sharding="full").estimate
    assert shared.base == alone.base and shared.weights == -(-alone.base // 8) and not shared.nf4
    remedy = run(None, [*settings, "training.devices=2", "training.sharding=full"], "1.5GB").remedy[0]
    assert remedy is None or "training.cpu_offload=true" in remedy


def test_what_is_gathered(chatglm_6b: str) -> None:
    """Of a full fine-tuning, in fp32; beside an adapter, as the base is."""
    settings = [f"model.path={chatglm_6b}", *FULL]
    full = run(None, settings, "80GB", devices=8, sharding="full").estimate
    assert full.gathered == 4 * (OUTSIDE + 2 * full.largest_block) and full.parted == 2 * 4 * OUTSIDE
    lora = run(None, [*settings, "method={name: lora}"], "80GB", devices=8, sharding="full").estimate
    each = lora.trainable.parameters // 28
    assert lora.gathered == 2 * (OUTSIDE + 2 * full.largest_block) + 8 * each and lora.parted == 8 * each
    assert full.step < run(None, settings, "80GB").estimate.step


def test_who_shares_nothing_has_it_all_and_buckets(chatglm_6b: str) -> None:
    settings = [f"model.path={chatglm_6b}", "training.batch_size=1"]
    alone = run(None, settings, "80GB").estimate
    each = run(None, settings, "80GB", devices=4).estimate
    assert each.buckets == each.gradients and each.gathered == 0
    assert each.peak == alone.peak + each.buckets
    assert [getattr(each, part) for part in PARTS] == [getattr(alone, part) for part in PARTS]


@pytest.mark.parametrize(
    ("settings", "devices", "batch"),
    [([8, 1], 1, 8), ([8, 1], 4, 2), ([8, 1], 3, 3), ([8, 4], 4, 8), ([8, 2], 4, 4), ([1, 1], 4, 1)],
)
def test_devices_divide_the_examples_of_a_step(settings: list[int], devices: int, batch: int) -> None:
    size, accumulated = settings
    given = [f"training.batch_size={size}", f"training.gradient_accumulation_steps={accumulated}"]
    assert run(None, given, "80GB", devices=devices).estimate.batch == batch


def test_several_devices_are_told(chatglm_6b: str) -> None:
    settings = [f"model.path={chatglm_6b}", *FULL]
    placement = run(None, settings, "80GB", devices=8, sharding="full")
    table = {part: meaning for part, _, meaning in lines(placement)}
    assert table["weights"].endswith(", a share of 23.00 GiB") and "gathered" in table and "buckets" not in table
    assert table["gradients"] == "fp32, a share of 23.00 GiB" and "a share of 45.99 GiB" in table["optimizer"]
    assert verdict(placement).startswith("It fits each of 8: a GPU of 80GB")
    told = as_dict(placement)
    assert (told["devices"], told["sharding"], told["buckets"]) == (8, "full", 0) and json.dumps(told)
    assert not {"gathered", "buckets"} & {part for part, _, _ in lines(run(None, settings, "80GB"))}
    here = run(device="cpu", devices=2)
    assert here.place.memory == run(device="cpu").place.memory // 2 and "a part in 2" in here.place.name


def test_a_method_that_does_not_tell(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(
        "from glmtune.methods import Method\nclass Mine(Method):\n    def apply(self, model): return model\n"
    )
    with pytest.raises(UserError, match=r"does not tell what it trains \(Method\.trainable_spec\)"):
        run(None, [f"method.name={own}"])


def test_the_context_of_cuda_counts() -> None:
    place = Place("cuda", "a GPU", GIB)
    found = run(memory="1GB").estimate
    assert place.spare(found) == GIB - CONTEXT["cuda"] - found.peak


def test_nothing_is_said_of_cuda() -> None:
    for place in ({"device": "cpu"}, {"device": "cpu", "memory": "8GB"}, {"memory": "8GB"}):
        answer = run(**place)  # type: ignore[arg-type]
        told = " ".join(meaning for _, _, meaning in lines(answer)) + verdict(answer)
        assert "CUDA" not in told and ("GPU" in told) == ("device" not in place), place


def test_every_part_is_told(chatglm_6b: str) -> None:
    answer = run(None, [f"model.path={chatglm_6b}", "training.optimizer=paged_adamw_8bit"], "24GB")
    table = {part: (amount, meaning) for part, amount, meaning in lines(answer)}
    assert table["parameters"] == ("6,173,286,400", "chatglm")
    assert table["weights"][0] == "11.50 GiB"
    assert "moves to the CPU when the GPU is full" in table["optimizer"][1]
    assert json.dumps(as_dict(answer))


def test_loads_nothing() -> None:
    code = (
        "import sys; from glmtune.cli import main\n"
        "try: main(['estimate'])\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert "peak of a step" in done.stdout
