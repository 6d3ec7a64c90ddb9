"""`fusionseg export --format fseg`: one file for another fusionseg. Bad archives are one message."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import fusionseg
from fusionseg import cli
from fusionseg.export.archive import archive_path, export_archive
from fusionseg.export.export import ExportOptions
from fusionseg.inference.reports.evaluated_cases import EvaluatedCases
from fusionseg.runs.archive import writer
from fusionseg.runs.archive.layout import CONFIG, MANIFEST, NETWORK, WEIGHTS, network_file
from fusionseg.runs.archive.trust import trusted_config
from fusionseg.runs.archive.writer import ArchivedNetwork, write_archive
from fusionseg.runs.cases.split import read_split
from fusionseg.runs.checkpoints import peek_config, read_checkpoint
from fusionseg.runs.trust.consent import TRUST
from fusionseg.utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def archive(tiny_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "model.fseg"
    exported = export_archive([tiny_run()], ExportOptions("fseg", path, cases=1, licence="CC-BY-4.0"))
    assert exported.is_equal and exported.parity["voxels"] > 0 and exported.parity["different"] == 0
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    values = np.random.default_rng(1).normal(100, 10, (20, 18, 22))
    values[4:12, 5:14, 4:12] += 250
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.diag([-0.8, -0.9, 1.4, 1.0])), path)
    return path


def files_of(archive: Path) -> Files:
    with zipfile.ZipFile(archive) as file:
        return {name: file.read(name) for name in file.namelist()}


def write_files(path: Path, files: Mapping[str, bytes], *, rehash: bool = True) -> Path:
    """Write an archive by hand, with the right hashes unless told otherwise."""
    files = dict(files)
    if rehash:
        manifest = json.loads(files[MANIFEST])
        others = {name: content for name, content in files.items() if name != MANIFEST}
        manifest["files"] = {name: {"sha256": hashlib.sha256(each).hexdigest()} for name, each in others.items()}
        files[MANIFEST] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def with_object(files: Files, name: str, **changes: object) -> Files:
    return {**files, name: json.dumps({**json.loads(files[name]), **changes}).encode()}


def test_another_fusionseg_predicts_without_the_run(
    archive: Path, tiny_run: Callable[..., Path], scan: Path, tmp_path: Path
) -> None:
    expected = fusionseg.predict(tiny_run(), scan, device="cpu")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    shutil.copy(archive, elsewhere / "it.fseg")
    command = [
        sys.executable,
        "-m",
        "fusionseg",
        "predict",
        "it.fseg",
        "-i",
        str(scan),
        "-o",
        "masks",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(fusionseg.__file__).parents[1])}
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.asarray(nibabel.load(elsewhere / "masks/scan.nii.gz").dataobj)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 1


def test_an_archive_has_the_post_processing_of_its_run(
    archive: Path, tiny_run: Callable[..., Path], scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prediction and evaluation take it, and it has no folders of the machine."""
    run = Path(shutil.copytree(tiny_run(), tmp_path / "private" / "tiny"))
    steps = {"largest_foreground": True, "steps": {"ball1": {"largest": True}}}
    images = [case.image for case in read_split(run).validation]
    chosen = {"cases": 1, "images": images, "runs": [{"run": str(run)}], "by": "Jane Doe"}
    content = {"format": "fusionseg post-processing", **steps, "without_own_cases": {}, "chosen": chosen}
    (run / "postprocessing.json").write_text(json.dumps(content))
    model = tmp_path / "model.fseg"
    words = ["--format", "fseg", "--cases", "0", "-o"]
    assert cli.main(["export", str(run), *words, str(model)]) == 0
    assert "with the post-processing of" in capsys.readouterr().err
    text = files_of(model)["postprocessing.json"].decode()
    assert "private" not in text and "Doe" not in text and json.loads(text)["chosen"] == {"cases": 1, "images": images}
    expected = fusionseg.predict(run, scan, postprocess="auto", device="cpu")
    plain = fusionseg.predict(model, scan, device="cpu")
    assert np.array_equal(fusionseg.predict(model, scan, postprocess="auto", device="cpu"), expected)
    assert not np.array_equal(plain, expected)
    again = tmp_path / "again.fseg"
    assert cli.main(["export", str(model), *words, str(again)]) == 0
    assert files_of(again)["postprocessing.json"].decode() == text
    # The digests tell that the choice was made on a case that is scored.
    data = str(fusionseg.load_run(run).config.data.root)
    found = fusionseg.evaluate(model, data, include_trained=True, postprocess="auto", device="cpu")
    assert found.summary["postprocessing"]["chosen_on"] == 1 and found.summary["cases"] == 2
    capsys.readouterr()
    predict = ["-i", str(scan), "-o", str(tmp_path / "masks"), "--postprocess", "auto", "--device", "cpu"]
    assert cli.main(["predict", str(archive), *predict]) == 2
    assert f"{archive}: has none; export the run again after fusionseg postprocess" in capsys.readouterr().err
    # Runs that differ are exported without; a damaged file in an archive from elsewhere is one message.
    assert cli.main(["export", str(run), str(tiny_run()), *words, str(tmp_path / "both.fseg")]) == 0
    assert "the post-processing is not exported" in capsys.readouterr().err
    assert "postprocessing.json" not in files_of(tmp_path / "both.fseg")
    for wrong, message in (
        ({"steps": []}, "expected largest_foreground"),
        ({"format": "other"}, "is no post-processing"),
    ):
        damaged = write_files(tmp_path / "bad.fseg", with_object(files_of(model), "postprocessing.json", **wrong))
        assert cli.main(["predict", str(damaged), *predict]) == 2
        assert message in capsys.readouterr().err


def test_the_api_opens_an_archive(archive: Path, tiny_run: Callable[..., Path]) -> None:
    run, expected = fusionseg.load_run(archive), fusionseg.load_run(tiny_run())
    assert (run.channels, run.labels, run.scheme) == (expected.channels, expected.labels, expected.scheme)
    assert run.records == [] and run.config.model == expected.config.model
    windows = torch.randn((1, 1, 16, 16, 16))
    with torch.no_grad():
        assert torch.equal(run.network()(windows), expected.network()(windows))
    image = np.random.default_rng(0).normal(size=(18, 17, 19))
    np.testing.assert_array_equal(run.predict(image, spacing=(1, 1, 1)), expected.predict(image, spacing=(1, 1, 1)))


def test_evaluate_knows_the_cases_of_the_training(archive: Path, tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    dataset = fusionseg.load_run(tiny_run()).config.data.root
    shutil.copy(archive, path := tmp_path / "model.fseg")
    with pytest.raises(UserError, match="--dataset"):
        fusionseg.evaluate(path)
    evaluation = fusionseg.evaluate(path, dataset, device="cpu")
    assert evaluation.folder.parent == tmp_path / "model_results"
    trained = {case.name for case in read_split(tiny_run()).training}
    assert set(evaluation.summary["left_out"]) == trained  # known by their digests, not by their names
    cases = EvaluatedCases(evaluation.folder, evaluation.summary, device="cpu")  # the pictures of its page
    assert next(iter(trained)) in cases


def test_a_training_starts_from_an_archive(
    archive: Path, tiny_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", str(tiny_run() / "config.yaml"), f"output={tmp_path}", "name=second", f"init_from={archive}"]
    assert cli.main(["train", *config, "train.steps=1"]) == 0
    assert "loaded" in capsys.readouterr().err and read_split(tmp_path / "second").seen[-1].images
    other = ["--config", str(tiny_run() / "config.yaml"), f"output={tmp_path}", "name=third", f"init_from={archive}"]
    assert cli.main(["train", *other, "train.steps=1", "data.fold=1"]) == 2
    assert "trained on" in capsys.readouterr().err


def test_an_archive_has_no_names_and_no_folders(archive: Path, tiny_run: Callable[..., Path]) -> None:
    files, run = files_of(archive), tiny_run()
    split = read_split(run)
    text = b"".join(content for name, content in files.items() if not name.endswith(WEIGHTS)).decode()
    assert not [case.name for case in (*split.training, *split.validation) if f'"{case.name}"' in text]
    assert split.training[0].image in text and str(run.parent) not in text
    assert {MANIFEST, "contract.json", *(network_file(0, name) for name in (CONFIG, NETWORK, WEIGHTS))} <= files.keys()


def test_names_of_accounts_cases_and_groups_stay_at_home(tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    state = torch.load(tiny_run() / "checkpoints/best.pt", weights_only=True)
    config, split = state["config"], state["split"]
    config["log"] |= {"mlflow": {"uri": "https://me:secret@host.org"}, "wandb": {"tags": ["organ:liver"]}}
    config["data"] |= {"fold": "Muster", "group": "who", "annotated": {"Muster_1": ["ball1"]}, "series": "Thorax:B31f"}
    split |= {"fold": "Muster", "methods": [{"name": "held_out", "group": "who"}]}
    shutil.copytree(tiny_run(), run := tmp_path / "run")
    for name in ("best.pt", "last.pt"):
        torch.save(state, run / "checkpoints" / name)
    (run / "split.json").write_text(json.dumps(split))
    path = export_archive([run], ExportOptions("fseg", tmp_path / "it.fseg", cases=0)).path
    text = b"".join(content for name, content in files_of(path).items() if not name.endswith(WEIGHTS)).decode()
    assert not [word for word in ("secret", "Muster", "organ:liver") if word in text]
    found = read_checkpoint(path)
    assert found["config"]["data"]["fold"] == found["split"]["fold"] == "held_out"
    assert fusionseg.load_run(path).config.data.series == "Thorax:B31f"  # a name, and no code


def test_the_same_run_gives_the_same_bytes(archive: Path, tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    words = ["export", str(tiny_run()), "--format", "fseg", "--cases", "0", "--licence", "CC-BY-4.0"]
    assert cli.main([*words, "-o", str(tmp_path / "again.fseg")]) == 0
    assert (tmp_path / "again.fseg").read_bytes() == archive.read_bytes()
    assert cli.main([*words[:1], str(archive), *words[2:], "-o", str(tmp_path / "again.fseg")]) == 0  # of an archive
    again, files = files_of(tmp_path / "again.fseg"), files_of(archive)
    differ = {name for name in files if files[name] != again.get(name)}
    assert differ == {MANIFEST, "contract.json", "card.md", "claim.md"}  # an archive has no records for a card


def test_an_ensemble_in_one_archive(tiny_run: Callable[..., Path], scan: Path, tmp_path: Path) -> None:
    path = tmp_path / "both.fseg"
    (other := tmp_path / "other").mkdir()
    shutil.copytree(tiny_run() / "checkpoints", other / "checkpoints")
    state = torch.load(other / "checkpoints/best.pt", weights_only=True)
    state["model"] = {name: x + 0.05 if x.is_floating_point() else x for name, x in state["model"].items()}
    torch.save(state, other / "changed.pt")
    runs = [tiny_run(), other / "changed.pt"]
    assert export_archive(runs, ExportOptions("fseg", path, cases=0)).is_equal
    expected = fusionseg.predict(runs, scan, probabilities=True, device="cpu")
    np.testing.assert_array_equal(fusionseg.predict(path, scan, probabilities=True, device="cpu"), expected)
    with pytest.raises(UserError, match="holds 2 networks"):
        fusionseg.load_run(path).network()


def test_a_changed_byte_is_found(archive: Path, tmp_path: Path) -> None:
    """In each file of the archive, and in what lies between them: the same content or one message."""
    good, content = read_checkpoint(archive), archive.read_bytes()
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(archive) as file:
        starts = [entry.header_offset for entry in file.infolist()]
    places = {*rng.integers(0, len(content), 60).tolist(), *(start + 40 for start in starts), len(content) - 10}
    path, refused = tmp_path / "changed.fseg", 0
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            found = read_checkpoint(path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert found["config"] == good["config"]
            assert all(torch.equal(value, good["model"][name]) for name, value in found["model"].items())
    assert refused > 40
    for size in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"changed\.fseg"):
            read_checkpoint(path)


def test_bad_archives_are_one_message(archive: Path, tmp_path: Path) -> None:
    files, path = files_of(archive), tmp_path / "bad.fseg"
    weights, config, facts = (network_file(0, name) for name in (WEIGHTS, CONFIG, NETWORK))

    def refusal(content: Files, *, rehash: bool = True) -> str:
        with pytest.raises(UserError) as raised:
            read_checkpoint(write_files(path, content, rehash=rehash))
        (problem,) = raised.value.problems
        assert problem.startswith(f"{path}: ")
        return problem

    assert "card.md has another hash" in refusal({**files, "card.md": b"x"}, rehash=False)
    assert "another hash" in refusal({**files, weights: files[weights][:-1] + b"x"}, rehash=False)
    for name in (weights, config, facts):
        assert f"{name} is missing" in refusal({key: value for key, value in files.items() if key != name})
    assert f"{MANIFEST} is missing" in refusal({key: files[key] for key in (weights, config)}, rehash=False)
    assert "'../evil.py'" in refusal({**files, "../evil.py": b"x"})
    assert "no archive has" in refusal({**files, "/etc/passwd": b"x"})
    assert "has no hash" in refusal({**files, network_file(1, CONFIG): b"x"}, rehash=False)
    newer = refusal(with_object(files, MANIFEST, fseg=2))
    assert "version 2" in newer and "newer" in newer
    assert "no version" in refusal(with_object(files, MANIFEST, fseg="x"))
    assert "missing" in refusal(with_object(files, MANIFEST, networks=2))
    assert "the number of networks" in refusal(with_object(files, MANIFEST, networks=10**9))
    assert "expected an object" in refusal({**files, facts: b"[]"})
    assert "damaged" in refusal({**files, facts: b"[" * 100_000})
    assert "damaged" in refusal({**files, weights: b"\xff" * 100})
    assert "channels" in refusal(with_object(files, facts, channels=3))


def test_an_archive_cannot_grow(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.fseg"
    files = {**files_of(archive), network_file(0, WEIGHTS): bytes(50_000_000)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    assert path.stat().st_size < 500_000
    with pytest.raises(UserError, match="compressed"):
        read_checkpoint(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as file:
        for name in (MANIFEST, MANIFEST):
            file.writestr(name, files[MANIFEST])
    with pytest.raises(UserError, match="two files of one name"):
        read_checkpoint(path)


def test_code_is_imported_only_by_an_explicit_word(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.py").write_text(
        "import torch\nopen('ran', 'w').close()\ndef Net(**kwargs):\n    return torch.nn.Identity()\n"
    )
    monkeypatch.chdir(tmp_path)
    files, config = files_of(archive), network_file(0, CONFIG)
    plain = json.loads(files[config])
    for changes in (
        {"model": {"name": "evil:Net", "args": {}, "found_in": str(tmp_path)}},
        {"data": {**plain["data"], "transforms": ["evil:Net"]}},
        {"task": "evil:Net"},
        {"metrics": {"evil:Net": {}}},
    ):
        path = write_files(tmp_path / "it.fseg", with_object(files, config, **changes))
        assert cli.main(["predict", str(path), "-i", "scan.nii.gz", "-o", "masks"]) == 2
        assert f"{TRUST}=evil:Net" in capsys.readouterr().err
        for call in (fusionseg.load_run, fusionseg.evaluate, read_checkpoint):
            with pytest.raises(UserError, match=TRUST):
                call(path)
        with pytest.raises(UserError, match=TRUST):
            peek_config(path)
        assert not Path("ran").exists()
    monkeypatch.setenv(TRUST, "other:Net, evil:Net")
    path = write_files(tmp_path / "it.fseg", with_object(files, config, model={"name": "evil:Net", "found_in": "/x"}))
    assert read_checkpoint(path)["config"]["model"] == {"name": "evil:Net"}
    assert cli.main(["predict", str(path), "-i", "scan.nii.gz", "-o", "masks"]) == 2
    assert Path("ran").exists()


def test_a_text_that_names_no_code_is_no_code() -> None:
    plain = {"a": ["run:1", "x: y", ":Net", "time 10:30", "http://x.org/a"], "b": {"name": "unet"}}
    plain["data"] = {"series": "Thorax:B31f", "labels": {"tumour:core": 1}, "also": [{"series": "Abdomen:B"}]}
    assert trusted_config(plain, Path("it.fseg")) == plain


def test_parts_from_outside_are_exported_with_a_word_about_them(
    tiny_run: Callable[..., Path], scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.load(tiny_run() / "checkpoints/best.pt", weights_only=True)
    state["config"]["data"]["transforms"] = [{"name": "monai.transforms:Identityd", "args": {"keys": ["image"]}}]
    torch.save(state, tmp_path / "with_part.pt")
    exported = export_archive([tmp_path / "with_part.pt"], ExportOptions("fseg", tmp_path / "it.fseg"))
    assert f"{TRUST}=monai.transforms:Identityd" in exported.parity["not_compared"]
    with pytest.raises(UserError, match=TRUST):
        fusionseg.predict(exported.path, scan, device="cpu")
    monkeypatch.setenv(TRUST, "monai.transforms:Identityd")
    mask = fusionseg.predict(exported.path, scan, device="cpu")
    np.testing.assert_array_equal(mask, fusionseg.predict(tiny_run(), scan, device="cpu"))


def test_a_part_by_its_path_is_named_as_the_archive_has_it(
    tiny_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "mine.py").write_text("def same(item):\n    return item\n")
    state = torch.load(tiny_run() / "checkpoints/best.pt", weights_only=True)
    state["config"]["data"]["transforms"] = [{"name": f"{elsewhere}/mine.py:same", "args": {}}]
    torch.save(state, tmp_path / "with_part.pt")
    runs, options = [tmp_path / "with_part.pt"], ExportOptions("fseg", tmp_path / "it.fseg", cases=0)
    monkeypatch.setenv(TRUST, own := f"{elsewhere}/mine.py:same")
    assert f"{TRUST}=mine.py:same;" in export_archive(runs, options).parity["not_compared"]
    monkeypatch.setenv(TRUST, f"{own},mine.py:same")
    assert "mine" in export_archive(runs, options).parity["not_compared"]  # is not in the working directory
    monkeypatch.chdir(elsewhere)
    assert export_archive(runs, options).parity["not_compared"] == "--cases 0"


def test_the_file_of_an_archive(archive: Path, tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    run = tiny_run()
    assert archive_path([run], None) == (run / f"{run.name}.fseg").resolve()
    for runs, output, message in (
        ([run, run], None, "is missing"),
        ([run], tmp_path / "model", "ends in .fseg"),
        ([run], tmp_path / "notes.fseg", "another file"),
    ):
        (tmp_path / "notes.fseg").write_text("my notes")
        with pytest.raises(UserError, match=message):
            archive_path(runs, output)
    assert archive_path([run], archive) == archive.resolve()
    assert (tmp_path / "notes.fseg").read_text() == "my notes"


def test_tensors_of_any_layout_are_written(tmp_path: Path) -> None:
    shared = torch.arange(24.0).reshape(2, 3, 4)
    weights = {
        "a": shared,
        "view": shared[:, 1],
        "strided": shared.permute(2, 0, 1),
        "scalar": torch.tensor(3),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "empty": torch.zeros(0),
    }
    network = ArchivedNetwork(weights, {"name": "x"}, ["CT"], {0: "background"}, 5, None)
    write_archive(tmp_path / "it.fseg", [network], {}, {})
    found = read_checkpoint(tmp_path / "it.fseg")
    assert found["step"] == 5 and "split" not in found
    for name, value in weights.items():
        assert torch.equal(found["model"][name], value) and found["model"][name].dtype == value.dtype
    with pytest.raises(UserError, match="no tensor"):
        write_archive(tmp_path / "other.fseg", [replace(network, weights={"a": 3})], {}, {})  # type: ignore[dict-item]
    assert not (tmp_path / "other.fseg").exists() and writer.VERSION == 1
