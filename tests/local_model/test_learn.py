"""`crossover learn`: from a CSV to a task that answers; and what it says of data that can't work."""

from __future__ import annotations

import asyncio
import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from local_model import encoder, gate, learning, tokenize
from local_model.heads import load_head, read_manifest
from local_model.model import LocalModel, ModelSettings, TaskSpec
from local_model.training import fit_head, text_key
from router.cli import labelled
from router.cli.learn import learn

ROWS = """text,label
The app crashes when I open settings,bug
Crash on start after the update,bug
The save button does nothing,bug
Error 500 when I upload a picture,bug
Search shows the wrong results,bug
The page is blank on my phone,bug
Login fails with the right password,bug
Please add a dark mode,feature
It would be great to export to PDF,feature
Can you support two languages?,feature
I wish I could sort by date,feature
Please add keyboard shortcuts,feature
A calendar view would help us,feature
How much is the yearly plan?,billing
My invoice shows the wrong address,billing
I was charged twice this month,billing
Can I pay by bank transfer?,billing
Cancel my subscription please,billing
Where do I find my receipts?,billing
Do you refund unused months?,billing
"""


@pytest.fixture
def folder(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CROSSOVER_CACHE_DIR", str(cache_dir))
    (tmp_path / "own.csv").write_text(ROWS)
    return tmp_path


def invoke(*args: str) -> Result:
    return CliRunner().invoke(learn, ["--task", "tickets", "--data", "own.csv", *args])


def test_twenty_rows_make_a_task_that_answers(folder: Path, cache_dir: Path) -> None:
    result = invoke()
    assert result.exit_code == 0, result.output
    assert "20 rows, 3 labels" in result.output
    assert "95 % interval" in result.output
    assert "below ten rows a label" in result.output
    assert result.output.rstrip().endswith("crossover serve")
    assert tomllib.loads((folder / "crossover.toml").read_text()) == {"tasks": {"tickets": {"head": "heads/tickets"}}}
    manifest = read_manifest(folder / "heads/tickets")
    assert set(manifest.engines) >= {"torch-fp32"}
    assert manifest.provenance["rows"] == 20
    assert manifest.provenance["data"] == "own.csv", "a name, no path of this machine"

    model = LocalModel.load(ModelSettings(), [TaskSpec("tickets", folder / "heads/tickets")], cache_dir=cache_dir)

    async def ask() -> str:
        model.start(asyncio.get_running_loop())
        try:
            (future,) = model.submit("tickets", ["the program crashed again"], truncate=False, deadline=None)
            found = (await future).probabilities
            return model.task("tickets").labels[int(found.argmax())]
        finally:
            await asyncio.to_thread(model.close)

    assert asyncio.run(ask()) == "bug"


def test_what_stands_in_the_config_stays_and_learning_again_changes_nothing_there(folder: Path) -> None:
    config = folder / "crossover.toml"
    config.write_text("# mine\n[server]\nport = 1234  # why not")
    assert invoke().exit_code == 0
    after = config.read_text()
    assert after.startswith("# mine\n[server]\nport = 1234  # why not\n\n[tasks.tickets]\n")
    again = invoke("--json")
    assert again.exit_code == 0
    assert config.read_text() == after
    report = json.loads(again.stdout)
    assert report["config_block_added"] is False
    assert report["columns"] == {"text": "text", "label": "label"}
    assert sum(row["held_out"] for row in report["labels"]) == 20
    assert 0 <= report["engines"][report["engine"]]["accuracy_low"] <= 1


def test_the_head_goes_where_it_is_told(folder: Path) -> None:
    result = invoke(
        "--out", str(folder / "elsewhere"), "--config", str(folder / "sub" / "my.toml"), "--engine", "torch"
    )
    assert result.exit_code == 0, result.output
    head = tomllib.loads((folder / "sub" / "my.toml").read_text())["tasks"]["tickets"]["head"]
    assert (folder / "sub" / head / "manifest.json").exists()
    assert list(read_manifest(folder / "elsewhere").engines) == ["torch-fp32"]


def test_the_head_is_fitted_on_the_engine_and_the_encoder_that_will_serve(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment overrides the config here as it does there; a relative source starts from the config's folder."""
    monkeypatch.setenv("CROSSOVER_MODEL__ENGINE", "torch")
    assert invoke("--config", str(folder / "sub" / "crossover.toml")).exit_code == 0
    assert list(read_manifest(folder / "sub/heads/tickets").engines) == ["torch-fp32"]
    (folder / "sub" / "mine").mkdir()
    (folder / "sub" / "crossover.toml").write_text('[model]\nsource = "mine"\n')
    result = invoke("--config", str(folder / "sub" / "crossover.toml"))
    assert result.exit_code == 2
    assert str(folder / "sub" / "mine") in "".join(result.stderr.split())


def test_all_that_is_wrong_with_the_config_is_told(folder: Path) -> None:
    """As `crossover check` would."""
    (folder / "crossover.toml").write_text('[model]\nengine = "tensorrt"\nthreds = 2\n')
    result = invoke()
    assert result.exit_code == 2
    assert "model.engine" in result.stderr
    assert "did you mean `threads`?" in result.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty"),
        ("text,label\n", "no rows"),
        ("text,label\na,x\nb,x\n", "only the label 'x'"),
        ("text,label\na,x\n,y\nb,\n", "line 3: no text"),
        ("text,label\na,x\nb,\n", "line 3: no label"),
        ("text,label\na,x\nhello, you,y\n", "line 3: not 2 fields"),
        ("id,a,b\n1,x,y\n", "--text-col and --label-col"),
        ('text,label\n"open,x\n', "not a CSV file"),
        ("where is my card,arrival\nI lost it,lost\n", "line 1 looks like data"),
    ],
)
def test_bad_data_is_refused_with_its_line_and_exit_code_2(folder: Path, content: str, told: str) -> None:
    (folder / "own.csv").write_text(content)
    result = invoke()
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    assert not (folder / "crossover.toml").exists()


@pytest.mark.parametrize("option", ["--out", "--config"])
def test_a_place_that_can_not_be_written_is_told_before_the_work(
    folder: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, exit code 2, and nothing was fitted."""
    monkeypatch.setattr("local_model.learning.learn", lambda *_, **__: pytest.fail("fitted"))
    result = invoke(option, str(folder / "own.csv" / "head"))
    assert result.exit_code == 2
    assert "own.csv is a file" in " ".join(result.stderr.split())
    assert sorted(path.name for path in folder.iterdir() if path.suffix) == ["own.csv"]


def test_the_columns_that_were_taken_are_told_and_a_guess_is_a_warning(folder: Path) -> None:
    """No name that anybody knows: by order."""
    (folder / "own.csv").write_text(ROWS.replace("text,label", "what,which"))
    result = invoke("--engine", "torch")
    assert "texts from column 'what', labels from column 'which'" in result.output
    assert "taken by order" in " ".join(result.output.split())
    found = labelled.read(folder / "own.csv", "what", "which")
    assert (found.text_column, found.label_column) == ("what", "which")
    assert not [note for note in found.notes if "order" in note]


def test_a_header_that_looks_like_data_is_one_if_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("customer message,team\na,x\nb,y\n")
    assert labelled.read(file, "customer message", "team").texts == ["a", "b"]
    with pytest.raises(labelled.BadData, match="text,label"):
        labelled.read(file)


def test_other_mistakes_are_usage_errors_too(folder: Path) -> None:
    assert invoke("--text-col", "nope").exit_code == 2
    assert CliRunner().invoke(learn, ["--task", "a b", "--data", "own.csv"]).exit_code == 2
    assert CliRunner().invoke(learn, ["--task", "t", "--data", "absent.csv"]).exit_code == 2
    (folder / "own.csv").write_bytes(b"text,label\n\xff\xfe,x\n")
    assert "UTF-8" in invoke().stderr
    (folder / "own.csv").write_text(ROWS)
    (folder / "crossover.toml").write_text("[broken")
    assert "crossover.toml" in invoke().stderr


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("\ufefftext,label\na,x\nb,y\n", ()),
        ("Category,Message\nx,a\ny,b\n", ()),
        ("text;label\na;x\nb;y\n", ()),
        ("text\tlabel\na\tx\nb\ty\n", ()),
        ("what,which\na,x\nb,y\n", ()),
        ("id,what,which\n1,a,x\n2,b,y\n", ("what", "which")),
        ("a,x\nb,y\nb,x\n", ()),
        ("text,label\n\na,x\n\nb,y\n\n", ()),
    ],
)
def test_columns_are_found_by_name_by_option_or_by_order(
    tmp_path: Path, content: str, options: tuple[str, ...]
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(content, encoding="utf-8")
    found = labelled.read(file, *options)
    assert (found.texts[:2], found.labels[:2]) == (["a", "b"], ["x", "y"])


GERMAN = """Wo bleibt denn meine neue Karte?
Ich kann mich seit gestern nicht mehr anmelden.
Bitte schicken Sie mir die Rechnung noch einmal.
Die Überweisung ist nicht angekommen.
Wie lange dauert die Lieferung nach Österreich?
Warum wurde mir dieser Betrag zweimal abgebucht?""".splitlines()
CHINESE = ["我的银行卡丢了，怎么办？", "为什么转账还没有到账？", "如何更改我的密码？", "我想取消订阅。"]
ENGLISH = [line.rpartition(",")[0] for line in ROWS.splitlines()[1:]]


@pytest.mark.parametrize(
    ("texts", "foreign"),
    [
        (ENGLISH, False),
        ([f"{text} 😀👍🏽 ❤️" for text in ENGLISH], False),
        (["ERR_1182 0x7f3a", "/usr/lib/x86_64/libfoo.so.3", "GET /v1/a?b=c 404"], False),
        (["naïve café owners love crème brûlée", "the façade of the hotel is new"], False),
        (GERMAN, True),
        (CHINESE, True),
        ([*ENGLISH[:6], *GERMAN, *CHINESE], True),
        (["Где моя карта?"], True),
    ],
)
def test_learn_warns_of_texts_that_the_default_encoder_does_not_know(
    texts: list[str], foreign: bool, cache_dir: Path
) -> None:
    found = encoder.find()
    note = learning.language_note(texts, found, tokenize.load(found, cache_dir))
    assert (note is not None) == foreign
    if note is not None:
        assert learning.MULTILINGUAL in note


def test_an_encoder_of_ones_own_gets_no_warning_about_language(cache_dir: Path) -> None:
    found = encoder.find()
    tokens = tokenize.load(found, cache_dir)
    assert learning.language_note(GERMAN, msgspec.structs.replace(found, source="my/multilingual"), tokens) is None


# --- the quality gate


def fit(folder: Path, cache_dir: Path, **options: Any) -> learning.Learned:
    rows = [line.rpartition(",") for line in ROWS.splitlines()[1:]]
    return learning.learn(
        "tickets",
        [text for text, _, _ in rows],
        [label for _, _, label in rows],
        encoder=encoder.find(),
        folder=folder,
        cache_dir=cache_dir,
        device="cpu",
        **options,
    )


def test_a_head_folder_keeps_what_each_engine_costs_and_how_it_answers_the_probes(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "SPEED_ROWS", 10)
    fit(tmp_path, cache_dir)
    engines = read_manifest(tmp_path).engines
    int8, fp32 = engines["onnx-int8"].quality, engines["torch-fp32"].quality
    assert int8 is not None
    assert fp32 is not None
    assert (fp32.label_agreement, fp32.largest_shift, fp32.accuracy_lost) == (1, 0, 0)
    assert 0.8 <= int8.label_agreement <= 1
    assert 0 < int8.largest_shift < 0.5
    assert int8.texts == fp32.texts == 20
    assert int8.accuracy is not None
    assert fp32.texts_per_second
    assert gate.verdict(int8) == []
    for kind in ("onnx-int8", "torch-fp32"):
        found = load_head(tmp_path, kind, encoder.find())  # type: ignore[arg-type]
        assert found.probes is not None
        assert found.probes.shape == (32, 3)
        assert np.allclose(found.probes.sum(axis=1), 1, atol=1e-5)


def test_many_rows_are_held_against_fp32_by_a_sample_without_a_second_head(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "CHEAP_ROWS", 0)
    monkeypatch.setattr(learning, "GATE_ROWS", 15)
    assert list(fit(tmp_path, cache_dir).fitted) == ["onnx-int8"]
    quality = read_manifest(tmp_path).engines["onnx-int8"].quality
    assert quality is not None
    assert quality.texts == 15


def test_where_int8_fails_the_gate_torch_gets_a_head_and_comes_first(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "CHEAP_ROWS", 0)
    monkeypatch.setattr(gate, "verdict", lambda quality: ["made to fail"] if quality.largest_shift else [])
    learned = fit(tmp_path, cache_dir)
    assert list(learned.fitted) == ["torch-fp32", "onnx-int8"]
    assert any("onnx-int8 fails the quality gate: made to fail" in note for note in learned.notes)
    assert load_head(tmp_path, "torch-fp32", encoder.find()).probes is not None


def test_rows_that_can_not_be_held_out_leave_the_quality_unknown(tmp_path: Path, cache_dir: Path) -> None:
    learning.learn(
        "t", ["yes please", "no thanks"], ["yes", "no"], encoder=encoder.find(), folder=tmp_path, cache_dir=cache_dir,
        device="cpu", engine="torch",
    )  # fmt: skip
    assert read_manifest(tmp_path).engines["torch-fp32"].quality is None


# --- fitting


def cloud(per_label: dict[str, int], seed: int = 0) -> tuple[np.ndarray[Any, Any], list[str], list[str]]:
    """Embeddings around one direction per label, with their labels and distinct texts."""
    rng = np.random.default_rng(seed)
    labels = [label for label, count in per_label.items() for _ in range(count)]
    centres = {label: rng.normal(size=16) for label in per_label}
    rows = np.array([centres[label] + rng.normal(0, 0.3, 16) for label in labels])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), labels, [f"text {i}" for i in range(len(labels))]


@pytest.mark.parametrize("counts", [{"a": 10, "b": 10}, {"a": 2, "b": 2}, {"a": 30, "b": 3, "c": 1}, {"a": 9, "b": 1}])
def test_small_and_lopsided_data_give_a_head_that_knows_its_own_rows(counts: dict[str, int]) -> None:
    embeddings, labels, texts = cloud(counts)
    fitted = fit_head(embeddings, labels, texts)
    given = (embeddings @ fitted.weight.T + fitted.bias).argmax(axis=1)
    assert [fitted.labels[i] for i in given] == labels
    assert np.isfinite(fitted.weight).all()
    assert 0.05 <= fitted.temperature <= 20
    single = [label for label, count in counts.items() if count == 1]
    assert any("one row" in note for note in fitted.warnings) == bool(single)
    for i, label in enumerate(labels):
        assert fitted.predicted[i] == -1 or label not in single


def test_one_row_of_each_label_is_fitted_but_its_accuracy_is_unknown() -> None:
    fitted = fit_head(*cloud({"a": 1, "b": 1}))
    assert fitted.metrics["held_out"] == 0
    assert "accuracy" not in fitted.metrics
    assert fitted.temperature == 1.0


def test_one_label_is_no_task() -> None:
    with pytest.raises(ValueError, match="two labels"):
        fit_head(*cloud({"a": 5}))


def test_copies_of_a_text_do_not_flatter_the_accuracy() -> None:
    """Labels at random: a copy in the training folds would give the answer away."""
    rng = np.random.default_rng(5)
    base = rng.normal(size=(40, 64)).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    labels = [str(label) for label in rng.integers(0, 2, 40)]
    texts = [f"Text {i}" for i in range(40)]
    copies = fit_head(np.repeat(base, 4, axis=0), np.repeat(labels, 4).tolist(), np.repeat(texts, 4).tolist())
    leaked = fit_head(np.repeat(base, 4, axis=0), np.repeat(labels, 4).tolist(), [f"t{i}" for i in range(160)])
    assert leaked.metrics["accuracy"] > 0.95
    assert copies.metrics["accuracy"] < 0.75
    assert any("repeat" in note for note in copies.warnings)


def test_texts_that_differ_in_case_and_spaces_are_the_same_text() -> None:
    assert text_key(" Hello  World ") == text_key("hello world") == text_key("ＨＥＬＬＯ world")
    assert text_key("hello world") != text_key("hello worlds")


def test_a_text_with_two_labels_is_told() -> None:
    embeddings, labels, texts = cloud({"a": 4, "b": 4})
    texts[4] = texts[0]
    assert any("more than one label" in note for note in fit_head(embeddings, labels, texts).warnings)
