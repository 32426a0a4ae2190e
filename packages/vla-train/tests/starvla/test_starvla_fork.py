"""Runs of the MapAnythingLlava3D fork: whole tiny policies against its own classes (see golden/README.md)."""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import AddedToken, processors
from vla_core.errors import UserError
from vla_core.policy import VLAPolicy
from vla_train.cli import main
from vla_vlm.common import tokenizer

CASES = ("MapAnythingLlava3DPI", "MapAnythingLlava3DPI_concat", "MapAnythingLlava3DPI_plain")
ROOT = "mapanythingllava3d_vlm_interface.model."
TEXT = {
    "model_type": "llava_llama", "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "mm_hidden_size": 24, "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
}  # fmt: skip
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
}  # fmt: skip
TABLES = ("embed_tokens.weight", "embedding.weight", "future_tokens.weight", "pos_embed", "cls_token")


def random_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """By name; legacy numpy streams never change."""
    draw = np.random.RandomState(zlib.crc32(name.encode()) ^ 5).standard_normal(shape)
    if len(shape) > 1:
        draw *= 0.5 if name.endswith(TABLES) else np.prod(shape[1:]) ** -0.5
    elif name.endswith((".weight", ".gamma")):
        draw = 1 + 0.2 * draw
    else:
        draw *= 0.2
    return torch.tensor(draw, dtype=torch.float32)


@pytest.fixture(scope="session")
def fork_weights() -> dict[str, torch.Tensor]:
    """The state dict that the fork's classes built, with the weights that they were given."""
    lines = Path(__file__).parent.joinpath("golden", "MapAnythingLlava3DPI.keys.txt").read_text()
    state = {}
    for line in lines.splitlines():
        name, sizes = line.split(" ")
        state[name] = random_tensor(name, tuple(map(int, sizes.split("x"))))
    table = f"{ROOT}geometric_model.map_anything_model.info_sharing.view_pos_table"
    state[table] = (torch.arange(state[table].shape[1]) % 2).float()[None]  # computed, not learnt
    return state


@pytest.fixture
def refused(capsys):
    """Runs the command and returns its one line of complaint."""

    def run(words):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@dataclass(frozen=True)
class Run:
    folder: Path
    robot: Path
    expected: dict[str, torch.Tensor]

    @property
    def config(self) -> Path:
        return self.folder / "run" / "config.yaml"

    def words(self, out: Path, base: str = "llava") -> list[str]:
        words = ["import-starvla", self.folder / "run", out, "--robot", self.robot]
        words += ["--base_vlm", self.folder / base]
        words += [] if base == "merged" else ["--vision_weights", self.folder / "siglip"]
        return list(map(str, words))

    def change(self, **changes: object) -> None:
        """Set keys of the config; None removes one."""
        data = yaml.safe_load(self.config.read_text())
        for key, value in changes.items():
            *path, last = key.split("__")
            node = data
            for part in path:
                node = node[part]
            node[last] = value
            if value is None:
                del node[last]
        self.config.write_text(yaml.safe_dump(data))

    def patch(self, file: str, **changes: object) -> None:
        """Set keys of a JSON file."""
        path = self.folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def fork_run(tmp_path, starvla_golden, robot_file, fork_weights):
    """``fork_run(case)``: the run on disk, with the directories that it started from."""

    def make(case, state=None):
        run = tmp_path / "run"
        (run / "checkpoints").mkdir(parents=True)
        shutil.copy(starvla_golden / f"{case}.yaml", run / "config.yaml")
        one = {
            name: {"mean": [0.0] * d, "std": [1.0] * d, "min": [-1.0] * d, "max": [1.0] * d,
                   "q01": [-1.0] * d, "q99": [1.0] * d}
            for name, d in (("action", 3), ("state", 2))
        }  # fmt: skip
        (run / "dataset_statistics.json").write_text(json.dumps({"tiny": one}))
        torch.save(
            fork_weights if state is None else state, run / "checkpoints" / "steps_20_pytorch_model.pt"
        )
        _directories(tmp_path)
        return Run(tmp_path, robot_file(), load_file(starvla_golden / f"{case}.safetensors"))

    return make


def _directories(folder: Path) -> None:
    """LLaVA-3D's and SigLIP's, and the merged one, all without weights."""
    for name in ("llava", "siglip", "merged"):
        (folder / name).mkdir()
    tokens = tokenizer.shipped()
    tokens.add_special_tokens([AddedToken("<s>", normalized=False, special=True)])
    tokens.add_tokens([AddedToken("<last>", normalized=False)])
    start = tokens.token_to_id("<s>")
    tokens.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    tokens.save(str(folder / "llava" / "tokenizer.json"))
    text = {**TEXT, "vocab_size": tokens.get_vocab_size()}
    (folder / "llava" / "config.json").write_text(json.dumps(text))
    (folder / "siglip" / "config.json").write_text(json.dumps(VISION))
    merged = {
        "model_type": "mapanything_llava3d",
        "language_model_name_or_path": str(folder / "llava"),
        "vision_model_name_or_path": str(folder / "siglip"),
        "prefix_image_dropout_prob": 0.25,
    }
    (folder / "merged" / "config.json").write_text(json.dumps(merged))


def _close(ours, theirs):
    scale = theirs.abs().max().item()
    error = (ours - theirs).abs().max().item() / scale
    assert error <= 1e-4, error


@pytest.mark.parametrize("case", CASES)
def test_loss_and_actions_equal_the_forks(fork_run, golden_observations, golden_samples, tmp_path, case):
    run = fork_run(case)
    assert main(run.words(tmp_path / "out")) == 0
    policy = VLAPolicy.from_pretrained(tmp_path / "out")
    assert (policy.model.geometry is None) == case.endswith("plain")
    with_state = not case.endswith("concat")
    with torch.no_grad():
        batch = policy.collate(golden_observations(with_state))
        _close(policy.model.predict(batch, run.expected["start"]), run.expected["predicted"])
        pipeline = policy.pipelines["tiny"]
        train = policy.collator([pipeline(sample) for sample in golden_samples(with_state)])
        loss = policy.model(train, run.expected["noise"], run.expected["time"])["action_loss"]
    _close(loss.reshape(1), run.expected["loss"])


def test_a_mistral_decoder_computes_the_same(fork_run, golden_observations, tmp_path):
    """As the fork's own class for it does with these weights, to the bit."""
    run = fork_run(CASES[0])
    run.patch("llava/config.json", model_type="llava_mistral", sliding_window=None)
    assert main(run.words(tmp_path / "out")) == 0
    policy = VLAPolicy.from_pretrained(tmp_path / "out")
    assert type(policy.model.vlm.language_model).__name__ == "MistralModel"
    with torch.no_grad():
        ours = policy.model.predict(policy.collate(golden_observations(True)), run.expected["start"])
    _close(ours, run.expected["predicted"])


@pytest.mark.parametrize("case", [CASES[0], CASES[2]])
def test_the_report_accounts_for_every_tensor(fork_run, fork_weights, tmp_path, capsys, case):
    run = fork_run(case)
    assert main(run.words(tmp_path / "out")) == 0
    lines = (tmp_path / "out" / "import_report.txt").read_text().splitlines()
    sources = {
        name
        for line in lines
        if line.startswith(("mapped", "dropped"))
        for name in line.split(" ", 1)[1].split(" -> ")[0].split(": ")[0].strip().split(" + ")
    }
    assert sources == set(fork_weights)
    dead = [line.split(": ")[1] for line in lines if f"{ROOT}geometric_projector" in line and ": " in line]
    assert dead == ([] if case == CASES[0] else ["dead"] * 2)
    shown = capsys.readouterr().out
    assert f"mapped  {ROOT}vision_projector.weight -> vlm.model.mm_projector.weight" in lines
    assert "state: read, but no action attends to it" in shown
    own = f"dropped {ROOT}language_model.model.model.mm_projector.0.weight: dead: LLaVA's own"
    assert any(line.startswith(own) for line in lines)


def test_the_config_becomes_ours(fork_run, tmp_path, capsys):
    run = fork_run("MapAnythingLlava3DPI_concat")
    tower, geometry = (
        f"mapanythingllava3d_vlm_interface.model.{x}" for x in ("vision_tower", "geometric_model")
    )
    run.change(
        trainer__freeze_modules=f"{tower}, {geometry}",
        trainer__repeated_diffusion_steps=None,
        datasets__vla_data__image_size=[112, 84],
        framework__mapanything_llava3d__prefix_image_dropout_prob=0.5,
        framework__mapanything_llava3d__prefix_lang_dropout_prob=0.125,
    )
    # The merged directory names the other two, and its dropout is what the model was built with.
    assert main(run.words(tmp_path / "out", "merged")) == 0
    framework = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["framework"]
    assert framework["fusion"] == {"name": "mean_pool"}
    head, vlm, geo = (framework[part] for part in ("head", "vlm", "geometry"))
    assert (head["compat"], head["vl_layer_selection"], head["n_heads"]) == ("starvla_llava3d", "first", 2)
    assert head["normalize_vl_hidden"]
    assert head["use_concat_cross_context"]
    assert head["repeated_diffusion_steps"] == 8
    assert (geo["compat"], geo["size"], geo["trainable"], geo["dense_heads"]) == (
        "starvla_llava3d", "tiny", False, False,
    )  # fmt: skip
    assert (vlm["prompt"], vlm["cot_prompt"]) == (
        "<image> {instruction}",
        "Your task is {instruction}. Be quick.",
    )
    assert (vlm["prefix_image_dropout_prob"], vlm["prefix_lang_dropout_prob"]) == (0.25, 0.0)
    assert vlm["instruction_whitespace"] == "collapse"
    sizes = [(step["height"], step["width"]) for step in framework["transforms"] if step["name"] == "resize"]
    assert sizes == [(84, 112), (56, 56)]
    shown = " ".join(capsys.readouterr().out.split())
    assert "prefix_image_dropout_prob: 0.5 in the config had no effect" in shown
    assert "prefix_lang_dropout_prob: 0.125 in the config had no effect" in shown


def test_an_unmerged_backbone_kept_its_geometry_and_its_dropout(fork_run, tmp_path):
    """There the fork read the dropout in time, and its switch for the geometric branch under another name."""
    run = fork_run("MapAnythingLlava3DPI_plain")
    run.change(
        framework__mapanything_llava3d__base_vlm=None,
        framework__mapanything_llava3d__prefix_lang_dropout_prob=0.125,
    )
    assert main(run.words(tmp_path / "out")) == 0
    policy = VLAPolicy.from_pretrained(tmp_path / "out")
    assert policy.model.geometry is not None
    assert policy.model.vlm.config.prefix_lang_dropout_prob == 0.125


def test_an_imported_policy_trains_on(fork_run, golden_samples, tmp_path):
    """A gradient for all but the frozen geometric model and, as there, what no action attends to."""
    run = fork_run(CASES[0])
    run.change(trainer__freeze_modules=f"{ROOT}geometric_model")
    assert main(run.words(tmp_path / "out")) == 0
    policy = VLAPolicy.from_pretrained(tmp_path / "out")
    policy.model.train()
    pipeline = policy.pipelines["tiny"]
    batch = policy.collator([pipeline(sample) for sample in golden_samples(True)])
    policy.model(batch)["action_loss"].backward()
    still = {name for name, p in policy.model.named_parameters() if p.grad is None or not p.grad.any()}
    apart = ("geometry.", "head.state_encoder.", "head.future")
    assert still == {name for name, _ in policy.model.named_parameters() if name.startswith(apart)}


def test_the_checkpoint_loader_names_the_command(fork_run):
    run = fork_run(CASES[0])
    with pytest.raises(UserError, match=f"vla-train import-starvla {run.folder / 'run'} OUT"):
        VLAPolicy.from_pretrained(run.folder / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"framework__mapanything_llava3d__image_token_joiner": "space"},
            "puts spaces between the image tokens",
        ),
        (
            {"framework__action_model__future_action_window_size": None},
            "has no framework.action_model.future_",
        ),
        ({"framework__name": "QwenPI"}, "the weights of StarVLA's MapAnythingLlava3D fork"),
        ({"framework__action_model__noise_beta_beta": 2.0}, "only 1.0 can be imported"),
    ],
)
def test_configs_that_are_refused(fork_run, refused, tmp_path, starvla_golden, change, message):
    run = fork_run(CASES[0])
    run.change(**change)
    words = run.words(tmp_path / "out")
    if "framework__name" in change:
        shutil.copy(starvla_golden / "config.json", tmp_path / "llava")  # a base VLM of that framework
        words = words[: words.index("--vision_weights")]
    assert message in refused(words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "siglip/config.json",
            {"patch_size": 8},
            "--vision_weights: patches of 8 pixels; the fork counts image",
        ),
        (
            "siglip/config.json",
            {"hidden_size": 128},
            "--vision_weights: a tower as wide as the language model",
        ),
        ("siglip/config.json", {"intermediate_size": 40}, "vision_tower.encoder.layers.0.mlp.fc1"),
        ("llava/tokenizer.json", {"post_processor": None}, "only prompts that begin with '<s>'"),
        ("llava/config.json", {"model_type": "gpt2"}, "is a 'gpt2', none of"),
        ("merged/config.json", {"language_model_name_or_path": "/nowhere"}, "/nowhere"),
        (
            "merged/config.json",
            {"language_model_name_or_path": None},
            "has no language_model_name_or_path; pass",
        ),
    ],
)
def test_directories_that_are_refused(fork_run, refused, tmp_path, file, change, message):
    run = fork_run(CASES[0])
    run.patch(file, **change)
    assert message in refused(run.words(tmp_path / "out", "merged" if "merged" in file else "llava"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            f"{ROOT}spatial_embed_tokens.weight",
            f"unexplained [{ROOT}spatial_embed_tokens.weight]",
        ),
        (f"{ROOT}language_model.model.model.vision_tower.x", "unexplained"),
        (f"{ROOT}geometric_model.map_anything_model.new.weight", "unexplained"),
        (
            f"-{ROOT}fusion_projector.bias",
            f"missing [{ROOT}fusion_projector.bias, fusion.out.bias]",
        ),
        (f"-{ROOT}geometric_model.map_anything_model.encoder.model.cls_token", "missing"),
        ("-action_model.model.proj_out_2.weight", "has no 'action_model.model.proj_out_2.weight'"),
    ],
)
def test_tensors_that_nothing_explains(fork_run, fork_weights, refused, tmp_path, name, message):
    state = {**fork_weights, name: torch.zeros(2)}
    if name.startswith("-"):
        state = {key: value for key, value in fork_weights.items() if key != name[1:]}
    run = fork_run(CASES[0], state)
    assert message in refused(run.words(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_geometric_model_of_unknown_widths(fork_run, fork_weights, refused, tmp_path):
    norm = f"{ROOT}geometric_model.map_anything_model.info_sharing.norm.weight"
    run = fork_run(CASES[0], {**fork_weights, norm: torch.zeros(80)})
    assert "has widths 64 and 80, those of no MapAnything that can be built (giant" in refused(
        run.words(tmp_path / "o")
    )


def test_a_vision_tower_is_the_forks_alone(starvla_run, refused, tmp_path):
    golden = starvla_run("QwenGR00T")
    words = ["import-starvla", *golden.words(tmp_path / "out"), "--vision_weights", "x"]
    assert "--vision_weights: only a run of MapAnythingLlava3DPI has" in refused(words)
