"""The dump and the hash of a configuration of built-in parts never change: resuming a run depends on them.

The values were recorded before the sections moved beside their code.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from fusionseg.config import RunConfig, dump_config, load_config, validate
from fusionseg.config.yaml_location import dump_yaml
from fusionseg.runs.run_config import config_hash, load_run_config, refuse_other_config
from fusionseg.utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = {
    "demo": ("953231895c7bba9d", "7b9dbd94b136b45e"),
    "hippocampus_fast": ("f639a820bf9cacb0", "7721036ebb7e2ea4"),
    "hippocampus_few_labels": ("ba60fa05d7001b18", "0ab12cd46a86c00c"),
    "hippocampus_fusion_od": ("b73695fd7669c77e", "aaee9d0c47fb66c6"),
    "hippocampus_pretrain": ("e8eac6860a13e943", "71806fa78e881c29"),
    "hippocampus_slices": ("b7bba0048ea802ae", "df1ce47eeab03ff4"),
    "hippocampus_unet": ("580cbfcdedb48a16", "90c647d2b50604b2"),
    "hippocampus_unets": ("2d5625562b0810ab", "63fc78f2d2d2b773"),
    "mae_swin": ("3246f479b33d0030", "ac677b00521d3b47"),
    "parse_fusion_od": ("3039cdbc7c0ec651", "38aaaa3ed6bf9629"),
    "sarcoma_pretrain": ("84b99b13d32b19ce", "ab2a133eac826f00"),
    "sarcoma_unet": ("6ecae4dfa95cad7d", "19628e3f834cea78"),
}
NETWORKS = {
    "swin_unetr": ("8927a2317845f665", "25c7aed33ef32946"),
    "swin_unetr_v2": ("4755ffba1ef895c3", "4643ffcc6fce4b6a"),
    "swin_fusion_1_v1": ("6a52bc01b7d42076", "49eaa250175b34a9"),
    "swin_fusion_2_v1": ("b0a4cbe3664ddbf2", "d7c8031303e2fbb9"),
    "swin_fusion_2_v2": ("274ce26fd473ef02", "28eca8ca5af93f0c"),
    "swin_fusion_2_v2_k3": ("ce32f4565695d96f", "e517d975decd1a99"),
    "swin_fusion_2_v2_maxavg": ("ea7c858d0c2f6fc6", "dbe2e9d926e75a70"),
    "swin_fusion_od": ("e79ddd3d1c591320", "38025075ec1e3446"),
    "swin_fusion_od_k3": ("752a4a1b868c28fa", "ea6060c1fab5ad8d"),
    "swin_fusion_od_large": ("99851a308f6d60a3", "3b433fa92ca51904"),
    "swin_fusion_full": ("33b24732e8468dbd", "50f41267e5edaec7"),
    "swin_fusion_bridge": ("1a03f4cac3f6decf", "48f9c0f916ea1b76"),
    "unet": ("b570cfaff43e15e4", "f696b4001712ce1c"),
    "resunet": ("bc68802781955afb", "35fd7db185193f23"),
    "attention_unet": ("5dec794956add67e", "043699846273b0c0"),
    "attention_resunet": ("8c292c6932196ac8", "b4f8eafcaa5fbe87"),
    "monai_unet": ("26463f01f96a6897", "3699c3e29b68d6cf"),
    "segresnet": ("c8755ffdf53f609a", "729d31bc9d099951"),
    "segresnet_ds": ("6b0e8e1cb84f8708", "e7c70a92fc905c54"),
    "unetr": ("db57c299fb7dd748", "81801a2acea029a8"),
    "nnunet_plain": ("6f6d05b74fad55cf", "6e1ad95c2aba0bb7"),
    "nnunet_residual": ("738f15609f34a58a", "5ac9ed9e2bb7788a"),
    "mednext": ("2ab69c801b4f3db7", "d42543ae0e5e3ddb"),
}
# The keys of each name of a loss, an optimizer and a schedule.
SECTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"loss": {"name": "dice_ce", "gamma": 1.5}}, "39d189be5f10ac04", "a0717482d85a0404"),
    ({"loss": {"name": "dice", "gamma": 1.5}}, "17f10367f5d49939", "d2996885cfdadbba"),
    ({"loss": {"name": "dice_focal", "gamma": 1.5}}, "fb47a2ada89f75f2", "3193d242123dedde"),
    ({"loss": {"name": "cross_entropy", "gamma": 1.5}}, "290eafb27177f2da", "35665cf999ab67b7"),
    ({"optim": {"name": "adamw"}}, "b570cfaff43e15e4", "f696b4001712ce1c"),
    ({"optim": {"name": "adam"}}, "0bb74b08b999b73a", "9eb6bed60fe076e8"),
    ({"optim": {"name": "sgd"}}, "60e519558a327b87", "00c9da85d69b7438"),
    ({"optim": {"name": "novograd"}}, "05c65eeb7fcffe10", "b744be4de3370f2c"),
    ({"optim": {"name": "sgd", "momentum": 0.5}}, "3da91708d5591e46", "cd2bbd6f623b5eb5"),
    ({"schedule": {"name": "cosine", "power": 2.0}}, "d7f42b0bd599bf53", "13b39c6c1f2c2e6c"),
    ({"schedule": {"name": "polynomial", "power": 2.0}}, "e07a44a75384c714", "8ea8639b26f6c8cd"),
    ({"schedule": {"name": "constant", "power": 2.0}}, "b2008d234c5e0aef", "b8e1074cc69d41dd"),
]


def recorded(config: RunConfig) -> tuple[str, str]:
    """The hash of the dump, and the hash that resuming compares."""
    return hashlib.sha256(dump_config(config).encode()).hexdigest()[:16], config_hash(config)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations(name: str) -> None:
    assert recorded(load_config(CONFIGS / f"{name}.yaml")) == SHIPPED[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name: str) -> None:
    assert recorded(validate({"model": {"name": name}})) == NETWORKS[name]


@pytest.mark.parametrize(("section", "dump", "short"), SECTIONS)
def test_losses_optimizers_and_schedules(section: dict[str, Any], dump: str, short: str) -> None:
    assert recorded(validate({"model": {"name": "unet"}, **section})) == (dump, short)


def test_a_run_is_loaded_though_a_newer_check_refuses_its_configuration(tmp_path: Path) -> None:
    """Three levels have no head for deep supervision: the network is the same without it."""
    plain = validate({"model": {"name": "resenc_unet", "channels": [4, 8, 8], "deep_supervision": False}}).to_dict()
    plain["model"]["deep_supervision"] = True
    with pytest.raises(UserError, match=r"model\.deep_supervision: needs at least 4 levels"):
        validate(plain)
    (tmp_path / "config.yaml").write_text(dump_yaml(plain))
    assert load_run_config(tmp_path).to_dict()["model"] == {**plain["model"], "deep_supervision": False}
    refuse_other_config(tmp_path, plain, load_run_config(tmp_path))  # with the key set to false it is resumed
