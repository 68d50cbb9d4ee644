"""How good is a graph? One judge for each kind of answer: what it is asked, what is kept of its answers, and the figure
with its intervals, alone and against the variants that it came from on the same samples.

    ClassifyJudge   a score per class             share of right answers (accuracy)
    ErrorJudge      numbers that should be others mean squared error (mse)
    AucJudge        a score of how odd it is      area under the ROC curve (roc_auc)
    FrechetJudge    pictures made of latents      distance to the real ones (frechet)
"""

from __future__ import annotations

from train_jobs.judges.auc import AucJudge
from train_jobs.judges.classify import ClassifyJudge
from train_jobs.judges.error import ErrorJudge
from train_jobs.judges.frechet import FrechetJudge
from train_jobs.judges.judge import Evidence, Judge, Other

__all__ = ["AucJudge", "ClassifyJudge", "ErrorJudge", "Evidence", "FrechetJudge", "Judge", "Other"]
