"""What a run records arrives in the trackers, as their own readers see it."""

import math
import struct
import threading
import time
from collections import deque

import pytest
import torch
from torch import nn

import thalweg
from thalweg.watch import Reading, RunStore, Sink
from thalweg.watch.delivery import Delivery

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
PATIENCE = 240.0
STEPS = 30
LOSSES = [1.0 / step for step in range(1, STEPS)] + [math.nan]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Every tracker writes below the test's own folder and asks no server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", str(PATIENCE))
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", str(PATIENCE))
    # On a busy machine a tracker may take longer than a user would want to wait for it.
    monkeypatch.setattr("thalweg.watch.delivery.PATIENCE", PATIENCE)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def train(sinks, steps=range(1, STEPS + 1), name="a run", broken=False, **options):
    """A loop whose gradient norm is 5 times its step, whose loss ends as NaN; gives the run.

    ``broken`` adds a step in which the gradient is NaN as well.
    """
    p = nn.Parameter(torch.zeros(2))
    opt = torch.optim.SGD([p], lr=0.0)
    options = {"budget": 1e9, "store": "store.sqlite", "name": name, **options}
    with thalweg.watch(None, opt, sinks=sinks, **options) as run:
        for step in steps:
            p.grad = torch.tensor([3.0, 4.0]) * step
            run.log(loss=LOSSES[step - 1], step=step)
            opt.step()
        if broken:
            p.grad = torch.tensor([math.nan, 0.0])
            run.log(loss=math.nan, step=STEPS + 1)
            opt.step()
    return run


# The first step's duration is not known before it has passed, so nothing is read in it.
NORMS = [(step, 5.0 * step) for step in range(2, STEPS + 1)]


def same(found, values):
    assert [step for step, _ in found] == list(range(1, len(values) + 1))
    assert [value for _, value in found] == pytest.approx(values, nan_ok=True)


def test_tensorboard_reads_the_numbers_and_the_finding(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: trackers)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train([thalweg.watch.TensorBoardSink("tb", layers=True)])
    assert run.disabled == {}
    events = EventAccumulator("tb/a run", size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    same(scalars["thalweg/loss"], LOSSES)
    assert scalars["thalweg/gradient norm"] == NORMS
    assert scalars["thalweg gradient norm/parameter 0"] == NORMS
    (text,) = events.Tensors("thalweg findings/not finite/text_summary")
    assert text.step == STEPS
    assert b"[warning] not finite at step 30: the loss is nan" in text.tensor_proto.string_val[0]
    (about,) = events.Tensors("thalweg/run/text_summary")
    assert b"| optimizer | SGD |" in about.tensor_proto.string_val[0]


def wandb_records(folder):
    """The records of an offline run, once W&B's own process has written the last of them."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.time() + PATIENCE
    while time.time() < deadline:
        records = list(log_records(file.read_bytes()))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.05)
    raise AssertionError(f"{file} was not finished in {PATIENCE} s")


def log_records(data):
    """LevelDB's log format around W&B's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4) and at <= len(data):  # a record in one piece, or its last piece
            record, whole = Record.FromString(whole), b""
            yield record


def wandb_history(records, name):
    """(our step, value) of one metric."""
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if name in items:
                step = items.get("thalweg/step")
                yield step and int(step), float(items[name].strip('"').lower())


def test_wandb_reads_the_numbers_the_alert_and_how_the_run_ended(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed (extra: trackers)")
    run = train([thalweg.watch.WandbSink(project="p", mode="offline", dir=tmp_path)])
    assert run.disabled == {}
    records = wandb_records(tmp_path)
    same(list(wandb_history(records, "thalweg/loss")), LOSSES)
    assert list(wandb_history(records, "thalweg/gradient norm")) == NORMS
    by_kind = {}
    for record in records:
        by_kind.setdefault(record.WhichOneof("record_type"), []).append(record)
    (alert,) = (record.alert for record in by_kind["alert"])
    assert (alert.title, alert.level) == ("not finite at step 30", "WARN")
    assert alert.text.startswith("the loss is nan")
    axes = {record.metric.glob_name: record.metric.step_metric for record in by_kind["metric"]}
    assert axes["thalweg*"] == "thalweg/step"
    assert by_kind["run"][0].run.display_name == "a run" and by_kind["exit"][0].exit.exit_code == 0


def test_wandb_leaves_a_run_of_the_user_current_and_alone(tmp_path):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed (extra: trackers)")
    (tmp_path / "mine").mkdir()
    mine = wandb.init(project="p", mode="offline", dir=tmp_path / "mine")
    try:
        mine.log({"x": 1.0}, step=5)
        run = train([thalweg.watch.WandbSink(project="p", mode="offline", dir=tmp_path)])
        assert run.disabled == {} and wandb.run is mine
        mine.log({"x": 2.0}, step=6)
    finally:
        mine.finish()
    assert len(list(wandb_history(wandb_records(tmp_path), "thalweg/loss"))) == STEPS
    records = wandb_records(tmp_path / "mine")
    assert list(wandb_history(records, "x")) == [(None, 1.0), (None, 2.0)]
    assert not list(wandb_history(records, "thalweg/loss"))


def test_wandb_takes_readings_into_a_run_that_is_given_and_does_not_end_it(tmp_path):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed (extra: trackers)")
    with wandb.init(project="p", mode="offline", dir=tmp_path) as mine:
        assert train([thalweg.watch.WandbSink(run=mine)]).disabled == {}
        mine.log({"x": 1.0})
    records = wandb_records(tmp_path)
    same(list(wandb_history(records, "thalweg/loss")), LOSSES)
    assert list(wandb_history(records, "x")) == [(None, 1.0)]


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    """An SQLite file that two tests share, since making its tables takes seconds; and its client."""
    found = pytest.importorskip("mlflow", reason="mlflow is not installed (extra: trackers)")
    pytest.importorskip("sqlalchemy", reason="MLflow's SQLite store needs sqlalchemy (extra: trackers)")
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    return uri, found.MlflowClient(tracking_uri=uri)


def test_mlflow_reads_the_numbers_the_tag_the_parameters_and_the_status(mlflow):
    uri, client = mlflow
    assert train([thalweg.watch.MLflowSink(uri, layers=True)]).disabled == {}
    (found,) = client.search_runs([client.get_experiment_by_name("thalweg").experiment_id])
    series = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }
    same(series["thalweg/loss"], LOSSES)
    assert series["thalweg/gradient norm"] == series["thalweg gradient norm/parameter 0"] == NORMS
    assert found.info.run_name == "a run" and found.info.status == "FINISHED"
    assert found.data.params["optimizer"] == "SGD" and found.data.params["lr"] == "0.0"
    assert "the loss is nan" in found.data.tags["thalweg/00000030 not finite"]


def test_mlflow_is_told_of_a_run_that_failed(mlflow):
    uri, client = mlflow
    with pytest.raises(IndexError):
        train([thalweg.watch.MLflowSink(uri, experiment="failing")], steps=range(1, STEPS + 2))
    (found,) = client.search_runs([client.get_experiment_by_name("failing").experiment_id])
    assert found.info.status == "FAILED"
    assert len(client.get_metric_history(found.info.run_id, "thalweg/loss")) == STEPS


def test_mlflow_takes_numbers_whatever_they_are_called(mlflow):
    uri, client = mlflow
    names = ["y" * 400, "", "a/../b", "c//d", "end/", "é [x] %$", "z" * 242 + "/z"]
    with thalweg.watch(
        None,
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0),
        sinks=[thalweg.watch.MLflowSink(uri, experiment="names")],
        budget=0,
        store=None,
    ) as run:
        run.log(**{name: float(number) for number, name in enumerate(names)})
    assert run.disabled == {}
    (found,) = client.search_runs([client.get_experiment_by_name("names").experiment_id])
    assert sorted(found.data.metrics.values()) == [float(number) for number in range(len(names))]


def test_wandb_alerts_of_what_is_critical_as_an_error(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed (extra: trackers)")
    train([thalweg.watch.WandbSink(project="p", mode="offline", dir=tmp_path)], broken=True)
    alerts = [one.alert for one in wandb_records(tmp_path) if one.WhichOneof("record_type") == "alert"]
    assert [(one.title, one.level) for one in alerts] == [
        ("not finite at step 30", "WARN"),
        ("not finite at step 30", "ERROR"),
    ]


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    found = pytest.importorskip("trackio", reason="trackio is not installed (make installs it)")
    for module in (found, found.utils, found.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    return found


def test_trackio_reads_the_numbers_and_the_alert(trackio):
    run = train([thalweg.watch.TrackioSink("p", auto_log_cpu=False)])
    assert run.disabled == {}
    (found,) = trackio.Api().runs("p")
    rows = trackio.SQLiteStorage.get_logs("p", found.name, run_id=found.id)
    losses = [(row["step"], float(row["thalweg/loss"])) for row in rows if "thalweg/loss" in row]
    same(losses, LOSSES)
    norms = [(row["step"], row["thalweg/gradient norm"]) for row in rows if "thalweg/gradient norm" in row]
    assert norms == NORMS
    (alert,) = trackio.SQLiteStorage.get_alerts("p", run_id=found.id)
    assert (alert["title"], alert["level"], alert["step"]) == ("not finite", "warn", STEPS)
    assert alert["text"].startswith("the loss is nan")


def test_trackio_alerts_of_what_is_critical_as_an_error(trackio):
    train([thalweg.watch.TrackioSink("p", auto_log_cpu=False)], broken=True)
    (found,) = trackio.Api().runs("p")
    alerts = trackio.SQLiteStorage.get_alerts("p", run_id=found.id)
    assert sorted((one["title"], one["level"]) for one in alerts) == [
        ("not finite", "error"),
        ("not finite", "warn"),
    ]


def test_trackio_leaves_a_run_of_the_user_current_and_open(trackio):
    mine = trackio.init("p", name="mine", auto_log_cpu=False)
    train([thalweg.watch.TrackioSink("p", auto_log_cpu=False)])
    trackio.log({"x": 1.0})
    trackio.finish()
    by_name = {one.name: one for one in trackio.Api().runs("p")}
    assert set(by_name) == {"mine", "a run"}
    (row,) = trackio.SQLiteStorage.get_logs("p", "mine", run_id=mine.id)
    assert row["x"] == 1.0


class Kept(Sink):
    """Keeps what it is sent, and fails where it is told to."""

    def __init__(self, fails=None):
        super().__init__()
        self.fails, self.gate = fails, threading.Event()
        self.gate.set()
        self.rows, self.findings, self.calls = [], [], []

    def _called(self, what):
        self.calls.append(what)
        if what == self.fails:
            raise ConnectionError("nobody there")

    def begin(self, name, about, *, start, earlier):
        self._called("begin")
        self.start, self.earlier = start, earlier
        return f"kept {name}"

    def write(self, rows):
        self.gate.wait(PATIENCE)
        self._called("write")
        self.rows += rows

    def tell(self, finding):
        self._called("tell")
        self.findings.append(finding)

    def end(self, outcome):
        self._called("end")
        self.outcome = outcome


@pytest.mark.parametrize("where", ["begin", "write", "tell", "end"])
def test_a_sink_that_fails_is_said_once_and_left_out_and_the_rest_goes_on(where):
    failing, working = Kept(fails=where), Kept()
    with pytest.warns(UserWarning, match="the sink 'Kept' failed and is switched off") as caught:
        run = train([failing, working])
    assert len(caught) == 1 and run.step == STEPS
    (name,) = run.disabled
    assert run.disabled == {name: "ConnectionError: nobody there"}
    assert failing.calls.count(where) == 1 and failing.calls[-1] == where
    assert {f.name for f in run.findings} == {"not finite", "sink switched off"}
    rows = [row for row in working.rows if "thalweg/loss" in row.numbers]
    same([(row.step, row.numbers["thalweg/loss"]) for row in rows], LOSSES)
    assert working.outcome == "finished"
    with RunStore("store.sqlite") as store:
        (info,) = store.runs()
        assert len(store.readings(1, "loss")) == STEPS and info.outcome == "finished"
        assert {f.name for f in store.findings(1)} == {"not finite", "sink switched off"}


def test_a_tracker_that_hangs_delays_neither_the_training_nor_the_store():
    sink = Kept()
    sink.gate.clear()
    p = nn.Parameter(torch.zeros(2))
    opt = torch.optim.SGD([p], lr=0.0)
    run = thalweg.watch(None, opt, sinks=[sink], budget=0, store="store.sqlite")
    for step in range(20):
        run.log(loss=float(step))
        opt.step()
    assert run.findings == [] and not sink.rows  # which waits for the store
    with RunStore("store.sqlite") as store:
        assert len(store.readings(1, "loss")) == 20
    sink.gate.set()
    run.close()
    assert [row.step for row in sink.rows] == list(range(1, 21)) and sink.outcome == "finished"


def test_a_tracker_that_still_hangs_at_the_end_is_left_and_what_it_lacks_is_said(monkeypatch):
    monkeypatch.setattr("thalweg.watch.delivery.PATIENCE", 0.2)
    sink = Kept()
    sink.gate.clear()
    # Losses, gradient norms, weight norms every tenth step, and the learning rate, which never changes.
    count = STEPS + len(NORMS) + 3 + 1
    with pytest.warns(UserWarning, match=f"{count} readings not taken 0.2 s after the end") as caught:
        run = train([sink])
    sink.gate.set()
    assert len(caught) == 1 and list(run.disabled) == ["Kept"]
    with RunStore("store.sqlite") as store:
        assert store.runs()[0].outcome == "finished" and len(store.readings(1, "loss")) == STEPS


def test_what_a_tracker_is_too_slow_to_take_is_given_up_oldest_first_and_said(monkeypatch):
    monkeypatch.setattr("thalweg.watch.delivery.KEPT", 10)
    sink = Kept()
    sink.gate.clear()
    with pytest.warns(UserWarning, match="readings did not get to Kept") as caught:
        opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        run = thalweg.watch(None, opt, sinks=[sink], budget=0, store=None)
        for step in range(1, 101):
            run.log(loss=1 / step, step=step)
            if step % 5 == 0:
                assert run.findings == []  # hands over what there is
        sink.gate.set()
        run.close()
    lost = int(str(caught[0].message).split()[1])
    steps = [row.step for row in sink.rows]
    assert lost > 0 and len(steps) + lost == 100
    assert steps[-10:] == list(range(91, 101))


def test_what_is_taken_while_more_is_handed_over_is_not_counted_as_lost(monkeypatch):
    monkeypatch.setattr("thalweg.watch.delivery.KEPT", 10)

    class Slow(deque):
        """Whoever asks how much there is leaves the other thread time to take it."""

        def __len__(self):
            count = super().__len__()
            if threading.current_thread() is threading.main_thread():
                time.sleep(0.2)
            return count

    sink = Kept()
    delivery = Delivery("Kept", sink, lambda *_: None)
    delivery._inbox = Slow(maxlen=10)
    for first in (1, 11):
        delivery.put([(0.0, Reading(step, "loss", 1.0)) for step in range(first, first + 10)], [])
    delivery.close("finished")
    assert len(sink.rows) + delivery.lost == 20


def test_a_resumed_run_finds_its_run_in_the_tracker_again():
    first, second = Kept(), Kept()
    train([first], steps=range(1, 21))
    train([second], steps=range(21, STEPS + 1), resume=True)
    assert (first.start, first.earlier) == (0, None)
    assert (second.start, second.earlier) == (20, "kept a run")
    with RunStore("store.sqlite") as store:
        (info,) = store.runs()
        assert info.about["sinks"] == {"Kept": "kept a run"}
        assert [one.step for one in store.readings(1, "loss")] == list(range(1, STEPS + 1))


def test_a_resumed_run_goes_on_in_the_same_event_files_from_its_step_on():
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: trackers)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train([thalweg.watch.TensorBoardSink("tb")], steps=range(1, 25))
    train([thalweg.watch.TensorBoardSink("tb")], steps=range(21, STEPS + 1), resume=True, start=20)
    events = EventAccumulator("tb/a run", size_guidance={"scalars": 0}).Reload()
    same([(event.step, event.value) for event in events.Scalars("thalweg/loss")], LOSSES)


def test_a_tracker_that_is_not_installed_is_named_when_its_sink_is_made():
    class Absent(Sink):
        package = "no_such_tracker"

    with pytest.raises(ImportError, match="Absent needs the package no_such_tracker, which is not installed"):
        Absent()


def test_what_is_no_sink_is_refused():
    with pytest.raises(ValueError, match=r"sinks must hold sinks such as .*, got 'wandb'"):
        train(["wandb"])
