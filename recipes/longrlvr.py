"""LongRLVR (arXiv 2603.02146): also paid for saying where the answer can be seen.

on a laptop CPU, minutes:              python -m recipes.longrlvr
pictures and clips, Qwen2.5-VL-7B:     python -m recipes.longrlvr 7b --dataset my.jsonl
numbered chunks of long texts:         python -m recipes.longrlvr chunks-7b --dataset my.jsonl
answers alone (plain RLVR):            python -m recipes.longrlvr 7b --dataset my.jsonl --longrlvr.weight 0

Rows carry a column `evidence`: boxes, frames or a span of a picture or clip, or numbers of chunks (see
perception/longrlvr.py); rows without it are plain RLVR. reward = ans + 0.1·F + 0.9·ans·F with F from the evidence that
an answer names. Boxes are compared in pixels of the original picture; if the model speaks in others (Qwen2.5-VL: pixels
after the resize, Qwen3-VL: thousandths), give --longrlvr.predicted resized or thousand, and rows with the columns
`original_size` and `resized_size`.

Departures: the published models read text, and their answers are compared by a judge, here by the style's rules.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.perception.longrlvr import LongRLVR
from mmrl.recipes.shared.evidence_data import ASK, ASK_CHUNKS, evidence_model, evidence_rewards
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of

PRESETS = {
    EMBEDDED: miniature(data={"suffix": ""}, sampling={"max_tokens": 48}),
    "7b": Preset("pictures and clips: boxes, frames, seconds", 7.0),
    "chunks-7b": Preset(
        "chunks of long texts, as published",
        longrlvr={"tag": "useful_chunks"},
        data={"suffix": ASK_CHUNKS},
        load={"max_prompt_tokens": 65_536},
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open", suffix=ASK),
    longrlvr: LongRLVR = LongRLVR(beta=2.0, eta=0.1),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    grpo: GRPO = GRPO(kl=0.001, clip_low=0.2, clip_high=0.28, dual_clip=10.0),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6, weight_decay=0.1, decay_all=True, warmup=5),
    run: Run = Run(name="longrlvr", prompts_per_step=64, updates_per_step=2, epochs=5),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=16_384),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model that is paid for its evidence, too."""
    prompts, heldout = open_data(dataset, data, run.seed)
    trainer = Trainer(
        open_policy(evidence_model(model), load, lora, run),
        prompts=prompts,
        heldout=heldout,
        rewards=evidence_rewards(reward, style_of(data.style), longrlvr),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "reward/evidence", "reward/context"))


if __name__ == "__main__":
    launch(main, PRESETS)
