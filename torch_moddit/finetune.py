"""Fine-tuning of a dense transformer into a routed one, on Hugging Face Accelerate.

From Python:

    config = FinetuneConfig(output=Path("out/diffcr"), steps=2000, batch_size=32, target=0.5, distill_weight=1.0)
    schedule = read_schedule(pipeline.scheduler)  # of torch_moddit.pipeline
    result = finetune(config, pipeline.transformer, dataset, schedule, null=null, components=pipeline.components)
    save_checkpoint(Path("out/model"), result.model, pipeline=pipeline, keep_ratio=result.keep_ratio)

`dataset` maps an index to a dictionary of tensors, `null` is the empty caption, or the class that is none, under the
same keys (`torch_moddit.data`): {"latents" (C, H, W), "text" (L, D), "mask" (L,)}, or "input_ids" in place of "text"
and "labels" () in place of both, or "pixels" in place of "latents"; `components` then encode them. An IterableDataset
gives such dictionaries one after the other.
`finetune` takes the transformer over (pass a copy to keep it), returns averaged weights with their plan, and calling it
again with the same configuration resumes from its last checkpoint: a run that was killed ends with the weights of one
that was not. `stop_after=N` ends a call after N steps, with a checkpoint. The controls are `mode=Mode.UNIFORM` (routers
trained, every keep ratio the target), `Mode.RANDOM` (random tokens, no routers) and `Mode.DENSE`.

From a shell: `python -m torch_moddit.finetune --help`, or `accelerate launch -m torch_moddit.finetune ...` for many
devices.

How exact resuming works: everything random about a sample (noise, dropped caption, random routing) is drawn from
generators seeded by (seed, step, place in the step), and the order of data and the timesteps of a step likewise, so no
generator's state need be stored. A step's samples are therefore the same however they are divided among processes and
micro-steps, and a checkpoint may be resumed with another division: sums are then taken in another order, and weights
agree to rounding. The product, and with pictures of several sizes or random routing the size of a batch, has to stay.
Reading a checkpoint runs nothing that it holds (`torch_moddit.runstate`).
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below: they take seconds, in which a signal must find its handler
    import sys

    from torch_moddit.__main__ import main

    sys.exit(main())

from torch_moddit.result import FinetuneResult
from torch_moddit.settings import FinetuneConfig, Mode
from torch_moddit.trainer import finetune

__all__ = ["FinetuneConfig", "FinetuneResult", "Mode", "finetune"]
