"""Recipes, plans and a study with all that they can say."""

from laconic.allocate import Plan
from laconic.compress import AwqScale, Compress, Narrow, Shorten, ShrinkHeads, SmoothQuant
from laconic.evaluate import Conditions
from laconic.methods import METHODS, Awq, Drone, Gptq, KfacSvd, Magnitude, Plus, Rtn, SparseGpt, Svd
from laconic.recipe import Recipe
from laconic.recipe.schema import EvaluationConfig
from laconic.recover import Correct, Distil, Finetune, Match, Student
from laconic.recover.observe import Feature

PLAN: Plan = {
    **{
        f"blocks.0.{method.name}": method() if method().has_size else method().with_keep(0.5, (64, 64))
        for method in METHODS
    },
    "blocks.1.{query,key,value}": KfacSvd(rank=8),
    "blocks.1.dense": None,
}

RECIPES = {
    "every-step": Recipe(
        model="some/model",
        data="glue/sst2",
        samples=16,
        seed=3,
        max_length=32,
        batch_size=4,
        labels="data",
        label_order=("negative", "positive"),
        steps=(
            Student(blocks=(0, 2), classes=2),
            Finetune(epochs=1, learning_rate=1e-4),
            Narrow(heads=0.5, channels=0.5, importance="taylor"),
            Shorten(drop={"encoder": 1}, select="greedy", replace="bias"),
            Shorten(blocks=(1, "2.ffn")),
            ShrinkHeads(size=8, multiple=4),
            AwqScale(bits=3, group_size=32),
            SmoothQuant(alpha=0.4),
            Compress(method=KfacSvd(), keep={"ffn": 0.5, "attention": 0.25}, allocate="spectrum", share_inputs=True),
            Compress(method=Plus(base=Rtn(bits=3), residual=Drone(rank=8), share=0.2), targets=("ffn", "*.query")),
            Compress(method=Magnitude(), keep=0.5, allocate="global"),
            Compress(method=SparseGpt(pattern="2:4", gradients=True), anchored=True, refresh=2),
            Compress(method=Svd(), error=0.01, allocate="threshold"),
            Compress(method=Svd(), plan={"blocks.0.query": Svd(rank=8), "blocks.0.key": None}),
            Compress(method=Gptq(bits=4, group_size="channel"), sequential=True),
            Compress(method=Awq(bits=4), allow_dense=True),
            Correct(held_out=0.5),
            Distil(
                epochs=1,
                hidden=1.0,
                matches=(Match(teacher=4, student=2), Match(teacher=1, student=1, feature=Feature.ATTENTION)),
            ),
        ),
        evaluate=EvaluationConfig(tasks=("glue/sst2",), cost=Conditions(batch=(1,), length=(16,)), limit=8),
    ),
    "least": Recipe(model="some/model", steps=(Compress(method=Svd(rank=8)),)),
}

BY_HAND = """\
# A recipe as people write it: names alone, and little else.
model: some/model
data: builtin:pydoc
steps:
  - compress: {method: kfac-svd, keep: 0.5, allocate: spectrum}
  - compress: {method: {gptq: {bits: 4}}, targets: [ffn]}
  - shorten: {drop: 1}
  - distil
evaluate: {tasks: [perplexity:builtin:pydoc], cost: true}
"""

STUDY = """\
title: Old
axes:
  model: [original]
  method: [svd, {zeros: magnitude}, {four bits: {rtn: {bits: 4, group_size: 8}}}]
  keep: [0.75, 0.5]
  then: [nothing, correct]
  seed: [0]
exclude:
  - {method: zeros, then: correct}
  - {method: svd, keep: 0.75}
  - {method: four bits, then: correct}
data: glue/sst2
samples: 4
tasks: [glue/sst2]
limit: 8
cost: {batch: [1], length: [8]}
"""
