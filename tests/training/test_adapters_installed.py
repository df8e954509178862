"""The callbacks in the Trainers of Lightning and transformers themselves, where they are installed."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import optprune as op

EPOCHS, PRUNE_AT = 4, 24
METHODS = {
    "SLR": lambda: op.training.SLR(every=8),
    "ADMM": lambda: op.training.ADMM(every=8, growth=1.1),
    "IHT": lambda: op.training.IHT(every=8),
}


@pytest.fixture
def dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.fixture
def samples(rng):
    return torch.randn(256, 16, generator=rng), torch.randint(0, 4, (256,), generator=rng)


def own_loop(dense, samples, plan, method):
    model = copy.deepcopy(dense)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    method.attach(model, plan, optimizer)
    steps = 0
    for _ in range(EPOCHS):
        for x, y in zip(*(part.split(32) for part in samples), strict=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            (loss + method.penalty()).backward()
            optimizer.step()
            method.step(loss)
            steps += 1
            if steps == PRUNE_AT:
                method.prune()
    method.finish([samples[0]])
    return model


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_lightning_trains_as_the_users_own_loop(name, dense, samples):
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(dense)

        def training_step(self, batch, index):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    module, plan = Module(), op.plan.uniform(dense, density=0.25)
    callback = op.training.lightning_callback(
        METHODS[name](), plan, model=module.net, prune_at=PRUNE_AT, calibration=[samples[0]]
    )
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
        False,
    )
    trainer = lightning.Trainer(max_epochs=EPOCHS, callbacks=[callback], accelerator="cpu", **quiet)
    batches: Any = list(zip(*(part.split(32) for part in samples), strict=True))
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    assert callback.report.kept == plan.count()
    assert same(module.net, own_loop(dense, samples, plan, METHODS[name]()))


@pytest.mark.parametrize("name", METHODS)
def test_transformers_trains_as_the_users_own_loop(name, dense, samples, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(dense)

        def forward(self, x, labels):
            logits = self.net(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(rows)

    rows = [{"x": x, "labels": y} for x, y in zip(*samples, strict=True)]
    model, plan = Model(), op.plan.uniform(dense, density=0.25)
    callback = op.training.trainer_callback(
        METHODS[name](), plan, model=model.net, prune_at=PRUNE_AT, calibration=[samples[0]]
    )
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        optim="adamw_torch",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    InOrder(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    assert callback.report.kept == plan.count()
    assert same(model.net, own_loop(dense, samples, plan, METHODS[name]()))
