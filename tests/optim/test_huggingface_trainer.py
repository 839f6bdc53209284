"""In transformers.Trainer: clipping, accumulation, schedules, checkpoints and two passes a step."""

import pytest
import torch
from hosts import HOSTED, every_hosted, plain_loop
from toys import assert_near, equal, same_state, state_of, weights
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from thalweg import optim

SHAPE = {"vocab_size": 16, "n_positions": 12, "n_embd": 32, "n_layer": 2, "n_head": 2}
DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def language_model(dropout=0.0):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(**SHAPE, **dict.fromkeys(DROPOUT, dropout), bos_token_id=0, eos_token_id=0)
    )


def sentence(start):
    tokens = (start + torch.arange(12)) % 16
    return {"input_ids": tokens, "labels": torch.cat([torch.tensor([-100]), tokens[1:]])}


SENTENCES = [sentence(7 * i % 16) for i in range(48)]


def together(first, size):
    return {key: torch.stack([one[key] for one in SENTENCES[first : first + size]]) for key in SENTENCES[0]}


@torch.no_grad()
def loss_of(model):
    return model(**together(0, 48)).loss.item()


def arguments(folder, **changes):
    plain = {
        "max_steps": 10,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.4,
        "learning_rate": 0.01,
        "lr_scheduler_type": "linear",
        "warmup_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(output_dir=str(folder), **{**plain, **changes})


def trainer(folder, make, model=None, kind=Trainer, callbacks=None, **changes):
    model = model or language_model()
    return kind(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=SENTENCES,
        eval_dataset=SENTENCES,
        optimizers=(make(model.parameters()), None),
        callbacks=callbacks,
    )


def log_of(host, key):
    return [entry[key] for entry in host.state.log_history if key in entry]


@every_hosted
def test_its_path_is_that_of_a_plain_loop_and_its_loss_falls(name, tmp_path):
    host = trainer(tmp_path, HOSTED[name])
    host.train()

    model = language_model()
    optimizer = HOSTED[name](model.parameters())

    def losses(model, step):
        for first in (4 * step, 4 * step + 2):
            yield model(**together(first, 2), num_items_in_batch=4 * 11).loss

    plain_loop(model, optimizer, range(10), losses, clip=0.4)
    assert equal(weights(host.model), weights(model))
    assert same_state(state_of(host.optimizer), state_of(optimizer))
    assert min(log_of(host, "grad_norm")) > 0.4  # clipped in every step
    assert loss_of(host.model) < 0.9 * loss_of(language_model())


@every_hosted
def test_a_resumed_run_continues_bit_for_bit(name, tmp_path):
    whole = trainer(tmp_path, HOSTED[name], language_model(0.1), save_strategy="steps", save_steps=4)
    whole.train()
    late = trainer(tmp_path / "late", HOSTED[name], language_model(0.1))
    late.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert equal(weights(late.model), weights(whole.model))
    assert same_state(state_of(late.optimizer), state_of(whole.optimizer))
    assert log_of(late, "loss") == log_of(whole, "loss")


def test_the_groups_that_it_makes_itself_decay_as_in_torch(tmp_path):
    paths = []
    for kind in (optim.AdamW, torch.optim.AdamW):
        model = language_model()
        host = Trainer(
            model=model,
            args=arguments(tmp_path, weight_decay=0.3, lr_scheduler_type="cosine"),
            train_dataset=SENTENCES,
            optimizer_cls_and_kwargs=(kind, {"lr": 0.01, "eps": 1e-6}),
        )
        host.train()
        assert [group["weight_decay"] for group in host.optimizer.param_groups] == [0.3, 0.0]
        paths.append(weights(model))
    assert_near(*paths, relative=1e-4)


class BackToTheIterates(TrainerCallback):
    """The Trainer evaluates the average but then saves what it finds: that must be the iterates."""

    def on_evaluate(self, args, state, control, optimizer, **rest):
        optimizer.train()


def test_it_evaluates_the_average_and_trains_and_saves_the_iterates(tmp_path):
    times = {"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5}
    host = trainer(tmp_path, HOSTED["Average"], callbacks=[BackToTheIterates()], **times)
    host.train()
    reference = trainer(tmp_path / "reference", HOSTED["Average"])
    reference.train()
    assert equal(weights(host.model), weights(reference.model))

    late = trainer(tmp_path / "late", HOSTED["Average"])
    late.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert equal(weights(late.model), weights(host.model))

    averages = reference.optimizer.optimizer.averages
    model = language_model()
    for p, q in zip(model.parameters(), reference.model.parameters(), strict=True):
        p.data.copy_(averages[q])
    assert log_of(host, "eval_loss")[-1] == pytest.approx(loss_of(model), rel=1e-5)
    assert abs(loss_of(model) - loss_of(reference.model)) > 1e-3


def test_saving_the_average_in_place_of_the_iterates_is_refused(tmp_path):
    times = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(
        RuntimeError, match=r"state_dict while the parameters hold the average: call train\(\)"
    ):
        trainer(tmp_path, HOSTED["Average"], **times).train()


class TwoPasses(Trainer):
    """Both gradients of a step, where it is not accumulated."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        optimizer = self.optimizer.optimizer
        move = optimizer.ascend if isinstance(optimizer, optim.SAM) else optimizer.displace
        move()
        optimizer.zero_grad()
        super().training_step(model, inputs, num_items_in_batch)
        return loss


class Ahead(TrainerCallback):
    """Once a step, before the first of its batches."""

    def on_step_begin(self, args, state, control, optimizer, **rest):
        optimizer.optimizer.predict()


TWO_PASSES = {
    "SAM": lambda params: optim.SAM(HOSTED["AdamW"](params), radius=0.1),
    "GradientRegularization": lambda params: optim.GradientRegularization(HOSTED["Lion"](params), 0.1, 0.1),
}


def closures(make, steps, batches):
    """The same by closure, in a plain loop without clipping: in each step so many batches of two."""
    model = language_model()
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10)
    for step in range(steps):

        def closure(step=step):
            optimizer.zero_grad()
            for batch in range(batches * step, batches * step + batches):
                loss = model(**together(2 * batch, 2), num_items_in_batch=22 * batches).loss
                loss.backward()
            return loss

        optimizer.step(closure)
        scheduler.step()
    return weights(model)


UNCLIPPED = {"max_grad_norm": 0.0, "warmup_steps": 0}


@pytest.mark.parametrize("name", TWO_PASSES)
def test_two_passes_in_a_training_step_equal_a_closure(name, tmp_path):
    host = trainer(tmp_path, TWO_PASSES[name], kind=TwoPasses, gradient_accumulation_steps=1, **UNCLIPPED)
    host.train()
    assert equal(weights(host.model), closures(TWO_PASSES[name], 10, batches=1))


def ahead(params):
    return optim.XGrad(params, lr=0.01)


def test_weights_that_are_predicted_by_a_callback_equal_a_closure(tmp_path):
    host = trainer(tmp_path, ahead, callbacks=[Ahead()], **UNCLIPPED)
    host.train()
    assert equal(weights(host.model), closures(ahead, 10, batches=2))


@pytest.mark.parametrize(("name", "first"), [("SAM", "ascend"), ("GradientRegularization", "displace")])
def test_two_passes_are_refused_where_there_is_only_one(name, first, tmp_path):
    with pytest.raises(RuntimeError, match=rf"{name}\.step\(\) needs a closure, or {first}\(\)"):
        trainer(tmp_path, TWO_PASSES[name]).train()
