"""In transformers.Trainer: its steps, its losses, its evaluation, and nothing about its path."""

import os

import pytest
import torch
from torch import nn

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from thalweg.watch import HuggingFaceCallback, RunStore  # noqa: E402
from thalweg.watch.labels import NamedLabels  # noqa: E402

STEPS = 12


def language_model(dropout=0.1):
    torch.manual_seed(0)
    shape = {"vocab_size": 16, "n_positions": 12, "n_embd": 32, "n_layer": 2, "n_head": 2}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**shape, **drop, bos_token_id=0, eos_token_id=0)
    )


def sentence(start, length):
    tokens = (start + torch.arange(12)) % 16
    labels = tokens.clone()
    labels[length:] = -100
    return {"input_ids": tokens, "labels": labels}


# Of different lengths, so that the mean over the batches of a step is not that of their means.
SENTENCES = [sentence(7 * i % 16, 3 + i % 9) for i in range(96)]


def accuracy(prediction):
    found = prediction.predictions.argmax(-1)[:, :-1]
    wanted = prediction.label_ids[:, 1:]
    return {"accuracy": float((found == wanted)[wanted != -100].mean())}


def trainer(folder, callback=None, model=None, kind=None, **changes):
    arguments = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.4,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    smooth = arguments.pop("smoothing", 0.0)
    return (kind or transformers.Trainer)(
        model=model or language_model(),
        args=transformers.TrainingArguments(
            output_dir=str(folder), label_smoothing_factor=smooth, **arguments
        ),
        train_dataset=SENTENCES,
        eval_dataset=SENTENCES[:8],
        compute_metrics=accuracy,
        callbacks=[callback] if callback else None,
    )


def log_of(host, key):
    return {entry["step"]: entry[key] for entry in host.state.log_history if key in entry}


def read(path, run=1):
    with RunStore(path) as store:
        info = store.runs()[run - 1]
        return info, {
            name: {one.step: one.value for one in store.readings(run, name)} for name in store.names(run)
        }


def test_steps_losses_and_evaluation_are_those_of_the_trainer_and_its_path_is_unchanged(tmp_path):
    times = {"eval_strategy": "steps", "eval_steps": 5, "per_device_train_batch_size": 8}
    plain = trainer(tmp_path / "plain", **times)
    plain.train()
    callback = HuggingFaceCallback(store=tmp_path / "s", budget=1e9)
    host = trainer(tmp_path / "my run", callback, **times)
    host.train()

    for one, other in zip(plain.model.parameters(), host.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not callback.run.disabled and not host.model._forward_hooks
    info, readings = read(tmp_path / "s")
    assert (info.name, info.steps, info.outcome) == ("my run", STEPS, "finished")
    assert info.about["model"] == "GPT2LMHeadModel" and info.about["optimizer"] == "AdamW"
    assert info.about["lr"] == 0.01
    assert readings["loss"] == pytest.approx(log_of(host, "loss"), rel=1e-5)
    assert readings["test loss"] == pytest.approx(log_of(host, "eval_loss"))
    assert readings["test accuracy"] == pytest.approx(log_of(host, "eval_accuracy"))
    assert list(readings["test accuracy"]) == [5, 10, 12]
    assert readings["learning rate"] == pytest.approx(log_of(host, "learning_rate"))
    assert readings["gradient norm before clipping"] == pytest.approx(log_of(host, "grad_norm"))
    # Read behind the clipping, before the step.
    clipped = {step: min(value, 0.4) for step, value in log_of(host, "grad_norm").items() if step > 1}
    assert readings["gradient norm"] == pytest.approx(clipped, rel=1e-4)
    assert {"dormant units", "weight norm", "softmax collapse"} <= readings.keys()
    others = readings.keys() - {"second moment lag"}
    assert not [name for name in others if "runtime" in name or "second" in name or "epoch" in name]


def test_labels_stand_beside_the_logits_that_predict_them():
    """A model that is sure of the next token has collapsed on it and not on the token itself."""
    model = language_model()
    labels = torch.tensor([[3, 1, 2, -100]])
    logits = torch.zeros(1, 4, 16)

    def beside(model, logits, labels):
        named = NamedLabels()
        named.note({"labels": labels})
        return named.beside(model, logits)

    assert beside(model, logits, labels).tolist() == [[1, 2, -100, -100]]
    classifier = transformers.GPT2ForTokenClassification(model.config)
    assert beside(classifier, logits, labels) is labels
    assert beside(model, logits, labels[:, :2]) is None and beside(model, None, labels) is None


def test_a_loss_that_the_trainer_computes_itself_is_the_one_that_it_logs(tmp_path):
    callback = HuggingFaceCallback(store=tmp_path / "s")
    host = trainer(tmp_path / "run", callback, smoothing=0.1, logging_steps=3)
    host.train()
    _, readings = read(tmp_path / "s")
    assert readings["loss"] == pytest.approx(log_of(host, "loss")) and list(readings["loss"]) == [3, 6, 9, 12]
    left = callback.run.left_out()
    assert (
        "label_smoothing_factor" in left["sharpness"] and "label_smoothing_factor" in left["softmax collapse"]
    )
    assert not any("run.log" in words or "loss_fn=" in words for words in left.values())


def test_a_run_that_is_resumed_from_a_checkpoint_goes_on_in_the_store(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4}
    options = {"store": tmp_path / "s", "budget": 1e9}
    trainer(tmp_path / "run", HuggingFaceCallback(**options), **saving).train()
    first = read(tmp_path / "s")[1]["loss"]
    host = trainer(tmp_path / "run", HuggingFaceCallback(**options), max_steps=16)
    host.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8"))
    with RunStore(tmp_path / "s") as store:
        (info,) = store.runs()
    _, readings = read(tmp_path / "s")
    assert (info.steps, info.about["resumed"]) == (16, [8])
    assert list(readings["loss"]) == list(range(1, 17))
    assert {step: readings["loss"][step] for step in range(1, 9)} == {s: first[s] for s in range(1, 9)}
    assert {s: readings["loss"][s] for s in range(9, 17)} == pytest.approx(
        {s: value for s, value in log_of(host, "loss").items() if s > 8}, rel=1e-5
    )


class Breaks(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5:
            raise ZeroDivisionError


def test_an_exception_in_a_with_block_is_the_outcome(tmp_path):
    host = trainer(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), HuggingFaceCallback(store=tmp_path / "s") as callback:
        host.add_callback(callback)
        host.add_callback(Breaks())
        host.train()
    info, readings = read(tmp_path / "s")
    assert (info.outcome, info.steps, list(readings["loss"])) == ("ZeroDivisionError", 5, [1, 2, 3, 4, 5])
    assert not host.model._forward_hooks and not host.optimizer.optimizer._optimizer_step_pre_hooks


def test_a_run_that_an_exception_left_open_is_closed_by_the_next(tmp_path):
    callback = HuggingFaceCallback(store=tmp_path / "s", name="mine")
    with pytest.raises(ZeroDivisionError):
        failing = trainer(tmp_path / "run", callback)
        failing.add_callback(Breaks())
        failing.train()
    trainer(tmp_path / "run", callback).train()
    with RunStore(tmp_path / "s") as store:
        assert [(info.outcome, info.steps) for info in store.runs()] == [("left open", 5), ("finished", 12)]


def test_another_process_than_the_first_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.TrainingArguments, "process_index", 1)
    callback = HuggingFaceCallback(store=tmp_path / "s")
    trainer(tmp_path / "run", callback, max_steps=3).train()
    assert callback.run.step == 3 and not (tmp_path / "s").exists()


class Net(nn.Module):
    """A model of one's own, whose loss is a mean over its batch: the Trainer takes the mean over batches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.act, self.out = nn.Embedding(16, 8), nn.Tanh(), nn.Linear(8, 16)

    def forward(self, input_ids, labels):
        logits = self.out(self.act(self.embed(input_ids)))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return transformers.utils.ModelOutput(loss=loss, logits=logits)


def test_a_model_of_ones_own_is_watched_with_its_loss_and_its_sharpness(tmp_path):
    callback = HuggingFaceCallback(store=tmp_path / "s", budget=1e9)
    host = trainer(tmp_path / "run", callback, model=Net(), max_steps=90, learning_rate=0.1)
    host.train()
    _, readings = read(tmp_path / "s")
    assert not callback.run.disabled
    assert readings["loss"] == pytest.approx(log_of(host, "loss"), rel=1e-5)
    assert readings["sharpness"]
