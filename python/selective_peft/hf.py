"""The Trainer of transformers with a selective optimizer: the optimizer, what is logged, deltas beside checkpoints.

    args = TrainingArguments("out", learning_rate=1e-3, num_train_epochs=3)
    callback = SelectiveCallback(save_at=(0.1, 0.5, 1.0))
    trainer = Trainer(model, args, train_dataset=data, callbacks=[callback],
                      optimizer_cls_and_kwargs=selective_optimizer(args, budget=0.005, train_fully=["classifier"]))
    callback.attach(trainer)
    trainer.train()

All of it is explained in docs/trainer.md.
"""

from selective_peft.callback import SelectiveCallback
from selective_peft.factory import SelectiveFactory, selective_optimizer
from selective_peft.figures import selection_figures

__all__ = ["SelectiveCallback", "SelectiveFactory", "selection_figures", "selective_optimizer"]
