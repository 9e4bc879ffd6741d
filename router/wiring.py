"""From the configuration to what the local model is asked to load."""

from __future__ import annotations

from local_model.model import ModelSettings, TaskSpec
from router.config_file import Loaded
from router.paths import head_path, model_source


def model_settings(loaded: Loaded) -> ModelSettings:
    model = loaded.config.model
    return ModelSettings(
        source=model_source(loaded.path, model.source),
        revision=model.revision,
        engine=model.engine,
        device=model.device,
        threads=model.threads,
        queue_items=model.queue_items,
        max_tokens=model.max_tokens,
    )


def task_specs(loaded: Loaded) -> list[TaskSpec]:
    specs = []
    for name, task in loaded.config.tasks.items():
        model = None if task.model is None else model_source(loaded.path, task.model)
        if model is not None and task.revision is not None:
            model = f"{model}@{task.revision}"
        head = None if task.head is None else head_path(loaded.path, task.head)
        specs.append(TaskSpec(name=name, head=head, model=model))
    return specs
