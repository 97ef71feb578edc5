"""Lightning's Trainer: its closures, accumulation, clipping and checkpoints."""

import lightning
import pytest
import torch
from engines import Engine
from harness import assert_same_picture, picture
from lightning.pytorch.callbacks import ModelCheckpoint
from selective_peft import SelectiveAdamW, selective_param_groups
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]


class Task(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        steps = int(self.trainer.estimated_stepping_batches)
        groups = selective_param_groups(self.net, train_fully=["2"])
        optimizer = SelectiveAdamW(groups, lr=1e-2, budget=100, total_steps=steps)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Send(lightning.Callback):
    """Sends the weights after each batch, and counts those after which they differed."""

    def __init__(self, task):
        self.engine, self.moves = Engine(task.net), 0

    def on_train_batch_end(self, trainer, task, *args):
        optimizer = trainer.optimizers[0]
        if optimizer.begun:
            weights = self.engine.weights
            self.moves += any(not torch.equal(weights[name], param) for name, param in task.net.named_parameters())
            self.engine.receive(optimizer.iter_patches(task.net))
            self.engine.assert_is(task.net)


def fit(folder, resume=None, **options):
    """A run of 4 epochs of 6 batches, with a checkpoint after each; a picture of its end, and what was sent."""
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(48, 16, generator=generator), torch.randint(2, (48,), generator=generator))
    task = Task()
    send, saved = Send(task), ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        default_root_dir=folder, max_epochs=4, accelerator="cpu", callbacks=[send, saved], logger=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(task, DataLoader(data, batch_size=8), ckpt_path=resume)
    return picture(trainer.optimizers[0], list(task.net.parameters())), trainer, send


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 24), ({"accumulate_grad_batches": 2}, 12), ({"gradient_clip_val": 0.1}, 24)],
    ids=["plain", "accumulation", "clipping"],
)
def test_a_run_streams_spends_its_budget_and_resumes(tmp_path, options, steps):
    """The optimizer steps within Lightning's closure; a checkpoint of it continues bit for bit."""
    expected, trainer, send = fit(tmp_path / "whole", **options)
    optimizer = trainer.optimizers[0]
    assert type(optimizer) is SelectiveAdamW
    assert trainer.global_step == optimizer.total_steps == send.moves == steps
    assert optimizer.num_selected == optimizer.budget == 100
    checkpoint = tmp_path / "whole" / "epoch=1.ckpt"
    resumed, again, late = fit(tmp_path / "resumed", checkpoint, **options)
    assert_same_picture(resumed, expected)
    assert again.global_step == steps
    # A batch that makes no step of its own brings the engine, which began with the base, what was trained before.
    assert late.moves == steps // 2 + ("accumulate_grad_batches" in options)
