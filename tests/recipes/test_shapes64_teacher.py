"""The teacher in the repository stands in for one that was trained."""

import json

from recipes.shapes64.teacher import CHECKPOINT, JOURNALS, drop_local_paths, restore_teacher, save_teacher


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_restored_as_it_was_saved(tmp_path):
    work, repository, again = tmp_path / "work", tmp_path / "repository", tmp_path / "again"
    for name in JOURNALS:
        write(work / "logs" / name, "{}\n")
    for name in ("tokenizer", "text_encoder", "vae", "scheduler", "transformer"):
        write(work / "dense" / name / "config.json", json.dumps({"is": name}))
        write(repository / CHECKPOINT / name / "config.json", json.dumps({"is": f"routed {name}"}))
    routed = {"transformer": ["torch_moddit", "RoutedPixArtTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"]}
    write(repository / CHECKPOINT / "model_index.json", json.dumps(routed))
    save_teacher(work, repository)
    restore_teacher(again, repository)
    restore_teacher(again, repository)
    restored = files(again)
    assert json.loads(restored["dense/transformer/config.json"]) == {"is": "transformer"}
    assert json.loads(restored["dense/vae/config.json"]) == {"is": "routed vae"}
    assert json.loads(restored["dense/model_index.json"]) == {
        **routed,
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
    }
    assert "text_encoder/config.json" in restored
    assert {f"logs/{name}" for name in JOURNALS} <= restored.keys()


def test_local_paths_are_dropped(tmp_path):
    write(tmp_path / "a" / "config.json", json.dumps({"_name_or_path": "/somewhere", "x": 1}))
    write(tmp_path / "list.json", "[1]")
    drop_local_paths(tmp_path)
    assert files(tmp_path) == {"a/config.json": '{\n  "x": 1\n}\n', "list.json": "[1]"}
