"""Wraps `Trainer.train`: what each training of a run really used, as a line of JSON; also a launcher for torchrun:

python spy.py SCRIPT FOLDER [FLAG ...]: `even` drops rows that fill no batch, `brief` generates four tokens at most, `calm` turns dropout
off, `first` ends the run after its first training.
"""

import gc
import json
import os
import runpy
import sys
import weakref
from pathlib import Path

import torch
import transformers

MODELS = weakref.WeakSet()  # the models that were trained or moved to a device


def alive(*used) -> int:
    """How many models are there beside those in use."""
    gc.collect()
    return sum(all(model is not one for one in used) for model in MODELS)


def listen(model, shares: dict) -> list:
    """Notes the share of zeros that two layers put out, by mode; after the notebook's own hooks."""

    def note(module, args, output):
        if module.training or module is layers[1]:  # attention of left padding is zero
            shares.setdefault("train" if module.training else "eval", []).append((output == 0).float().mean().item())

    layers = [model.model.layers[0].self_attn.o_proj, model.model.layers[-1].mlp.down_proj]
    return [layer.register_forward_hook(note) for layer in layers]


def describe_optimizer(trainer) -> list[dict]:
    names = {weight: name for name, weight in trainer.model.named_parameters()}
    return [
        {key: value for key, value in group.items() if isinstance(value, (int, float, bool, tuple))}
        | {"names": [names[weight] for weight in group["params"]]}
        for group in trainer.optimizer.param_groups
    ]


def watch(folder: Path, flags: list[str] = ()) -> None:
    """From here on every training leaves a line in `folder`/trainings-RANK.jsonl."""
    folder, whole_train = Path(folder), transformers.Trainer.train
    folder.mkdir(parents=True, exist_ok=True)
    generate, move = transformers.GenerationMixin.generate, transformers.PreTrainedModel.to

    def to(self, *args, **kwargs):
        MODELS.add(self)
        return move(self, *args, **kwargs)

    transformers.PreTrainedModel.to = to
    if "brief" in flags:
        transformers.GenerationMixin.generate = lambda self, *args, **options: generate(
            self, *args, **options | {"max_new_tokens": min(4, options["max_new_tokens"])}
        )
    if "calm" in flags:
        torch.nn.functional.dropout = lambda values, *args, **options: values

    def train(self, *args, **kwargs):
        if "even" in flags:
            batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            self.train_dataset = self.train_dataset.select(range(len(self.train_dataset) // batch * batch))
        fact = {
            "class": type(self).__name__,
            "alive": alive(self.model, getattr(self, "teacher", None)),
            "arguments": json.loads(self.args.to_json_string()),
        }
        fact |= {"processes": self.args.world_size, "dataset": [len(self.train_dataset), len(self.eval_dataset)]}
        fact["start"] = [weight.double().abs().sum().item() for weight in self.model.parameters()]
        fact["seed_after"] = torch.initial_seed()
        teacher, step, rows, shares = getattr(self, "teacher", None), self.training_step, {}, {}
        MODELS.add(self.model)
        hooks = listen(self.model, shares)

        def training_step(model, inputs, *rest, **more):
            mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
            seen = [hash(tuple(ids[kept.bool()].tolist())) for ids, kept in zip(inputs["input_ids"], mask)]
            rows.setdefault(int(self.state.epoch + 1e-6), []).extend(seen)
            fact["keys"] = sorted(inputs)
            return step(model, inputs, *rest, **more)

        self.training_step = training_step
        try:
            result = whole_train(self, *args, **kwargs)
        finally:
            del self.training_step
            for hook in hooks:
                hook.remove()
        fact |= {
            "optimizer": type(getattr(self.optimizer, "optimizer", self.optimizer)).__name__,
            "rows": [*rows.values()],
        }
        fact |= {"groups": describe_optimizer(self), "dtypes": sorted({str(w.dtype) for w in self.model.parameters()})}
        fact |= {
            "schedule": self.lr_scheduler.lr_lambdas[0].func.__name__,
            "dropped": shares,
            "log": self.state.log_history,
        }
        fact |= {
            "steps": self.state.global_step,
            "best": self.state.best_metric,
            "callbacks": len(self.callback_handler.callbacks),
        }
        if teacher is not None:
            fact["share"] = self.share
            fact["teacher"] = {
                "training": teacher.training,
                "gradients": sum(weight.grad is not None for weight in teacher.parameters()),
                "dtype": str(teacher.dtype),
                "weights": [weight.double().abs().sum().item() for weight in teacher.parameters()],
            }
        with open(folder / f"trainings-{self.args.process_index}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(fact, default=str) + "\n")
        if "first" in flags:
            sys.stderr.flush()
            os._exit(0)
        return result

    transformers.Trainer.train = train


def read(folder: Path, rank: int = 0) -> list[dict]:
    """The trainings that a watched run left, in their order."""
    lines = (Path(folder) / f"trainings-{rank}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    watch(sys.argv[2], sys.argv[3:])
    runpy.run_path(sys.argv[1], run_name="__main__")
