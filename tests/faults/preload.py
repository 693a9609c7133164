"""Imports for the server of `forks.py`: what a run imports, and nothing that starts a thread."""

import runpy

import datasets
import pandas  # noqa: F401
import torch
import transformers.models.auto.tokenization_auto  # noqa: F401
import transformers.models.bert.modeling_bert  # noqa: F401
from conftest import RECIPE

import bert_multitask.inference.trained_run
import bert_multitask.reporting.report  # noqa: F401

datasets.disable_progress_bars()
torch.set_num_threads(1)
runpy.run_path(str(RECIPE), run_name="preload")
