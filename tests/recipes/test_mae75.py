"""The pre-training mae75 and the fine-tuning from it, on synthetic vessels: form, start weights, rates, the control."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.conftest import SHORT, RunRecipe, SyntheticData

import fusionseg
import fusionseg.pretrain
import fusionseg.train
from fusionseg.cluster.sweep import load_sweep
from fusionseg.runs.checkpoints import find_weights
from fusionseg.runs.records import read_records

SMALL = (
    *("model.feature_size=12", "model.depths=[1,1,1,1]", "model.window_size=2", "data.patch=[64,32,32]"),
    *("data.spacing=null", "schedule.warmup=1", "validate.every=2"),
)


@pytest.fixture(scope="module")
def encoder(synthetic_data: SyntheticData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training of two steps."""
    output = tmp_path_factory.mktemp("pretraining")
    words = (f"data.root={synthetic_data('vessels', 48)}", f"output={output}", *SHORT, *SMALL, "seed=1")
    assert fusionseg.pretrain.main(["--config", "mae75", *words]) == 0
    return output / "mae75"


def test_three_quarters_of_blocks_of_16_are_hidden_and_scored_by_the_squared_error(encoder: Path) -> None:
    config = fusionseg.load_config(encoder / "config.yaml")
    assert config.pretrain is not None
    assert (config.pretrain.method, config.pretrain.block) == ("blackout", 16)
    assert config.pretrain.num_hidden((160, 160, 160)) == 750
    assert config.pretrain.num_hidden(config.data.patch) == 12
    loss = config.pretrain.loss
    assert (loss.ssim, loss.l1, loss.l2, loss.over) == (0.0, 0.0, 1.0, "masked")


def test_fine_tuning_starts_from_the_encoder_and_the_control_from_random_weights(
    encoder: Path, synthetic_data: SyntheticData, run_recipe: RunRecipe
) -> None:
    data = synthetic_data("vessels", 48)
    words = (*SMALL, f"init_from={encoder}", "stop.plateau=null", "validate.overlap=0")
    sawtooth = "finetune={freeze: encoder, freeze_steps: 1, restart_schedule: true}"
    tuned = run_recipe("parse_fine_tuning", data, *words, sawtooth)
    assert set(np.unique(tuned.mask)) <= {0, 1}
    assert tuned.config.schedule.name == "polynomial" and tuned.config.optim.lr == 3e-5  # a third of parse_fusion_od's
    control = tuned.folder.with_name("control")
    again = ["--config", str(tuned.folder / "config.yaml"), "name=control", "finetune.from_scratch=true"]
    assert fusionseg.train.main(again) == 0
    for run in (tuned.folder, control):  # one step of the decoder alone, then a warm-up of one step again
        rates = [record["lr"] for record in read_records(run) if record["kind"] == "train"]
        assert rates == pytest.approx([3e-5, 3e-5])
    trained, start, scratch = (
        torch.load(find_weights(folder), weights_only=True)["model"]["swinViT.patch_embed.proj.weight"]
        for folder in (tuned.folder, encoder, control)
    )
    assert torch.allclose(trained, start, atol=1e-4)  # one step of Adam changes a weight by at most 3e-5
    assert not torch.allclose(scratch, start, atol=1e-2)


SMALL_RESENC = (
    *("model.channels=[4,8,8,8]", "model.blocks=[1,1,1,1]", "data.patch=[32,32,32]"),
    *("data.spacing=null", "schedule.warmup=1", "validate.every=2"),
)


def test_fine_tuning_starts_from_the_residual_encoder_and_its_decoder(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    """Shares of the patch, optimizers and schedules as shipped; two steps each."""
    shipped = fusionseg.load_config("mae75_resenc")
    assert shipped.pretrain == fusionseg.load_config("mae75").pretrain
    assert shipped.pretrain is not None and shipped.pretrain.num_hidden(shipped.data.patch) == 750
    words = (f"data.root={synthetic_data('vessels', 48)}", f"output={tmp_path}", *SHORT, *SMALL_RESENC)
    assert fusionseg.pretrain.main(["--config", "mae75_resenc", *words, "seed=1"]) == 0
    tune = ("--config", "parse_resenc_fine_tuning", *words, "validate.overlap=0", f"init_from={tmp_path}/mae75_resenc")
    # The encoder begins to learn in the second step, its lower levels more slowly.
    decay = ("finetune={freeze: encoder, freeze_steps: 1, layer_decay: 0.5}", "init_min_share=0.9", "optim.lr=1e-6")
    assert fusionseg.train.main([*tune, *decay]) == 0
    start, tuned = (
        torch.load(find_weights(tmp_path / name), weights_only=True)["model"]
        for name in ("mae75_resenc", "parse_resenc_fine_tuning")
    )
    for part in ("encoder.", "decoder."):
        names = [name for name in tuned if name.startswith(part) and "seg_layers" not in name]
        assert all(torch.allclose(tuned[name], start[name], atol=1e-4) for name in names)
        assert any(not torch.equal(tuned[name], start[name]) for name in names)
    assert {name.split(".")[0] for name in start.keys() - tuned.keys()} == {"reconstruct", "hidden_token"}


def test_the_runs_of_the_table_differ_in_their_start_alone() -> None:
    pretrained = {run.config.name: run for run in load_sweep("few_labels_pretraining").runs}
    runs = {run.config.name: run.config for run in load_sweep("few_labels").runs}
    assert len(runs) == 4 * 5
    for seed in range(5):
        scratch = runs[f"scratch-fold0-seed{seed}"]
        assert (scratch.init_from, scratch.seed, scratch.data.train_cases) == (None, seed, 16)
        for name in ("mae75", "blackout50"):
            tuned = runs[f"{name}-fold0-seed{seed}"]
            different = fusionseg.config.differences(scratch.to_dict(), tuned.to_dict())
            assert [line.split(":")[0] for line in different] == ["name", "init_from"]
            assert tuned.init_from == str(pretrained[f"{name}-fold0"].folder)
    mae75, blackout = (pretrained[f"{name}-fold0"].config for name in ("mae75", "blackout50"))
    assert mae75.pretrain == fusionseg.load_config("hippocampus_mae75").pretrain
    assert mae75.data.intensity == blackout.data.intensity == runs["scratch-fold0-seed0"].data.intensity
