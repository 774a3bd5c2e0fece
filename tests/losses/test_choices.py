"""An option with a misspelt value is refused in code as in configs; it never means another one."""

import pytest

from xlcm.losses.feature_distillation import FeatureDistillationLoss
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.relation_distillation import RelationDistillationLoss
from xlcm.losses.sigmoid import SigmoidLoss
from xlcm.losses.similarity_distillation import SimilarityDistillationLoss
from xlcm.losses.triplet import TripletLoss
from xlcm.losses.word_alignment import WordAlignmentLoss

CHOICES = {
    FeatureDistillationLoss: ["reduction"],
    InfoNCELoss: ["reduction", "tiled"],
    RelationDistillationLoss: ["direction", "reduction", "tiled"],
    SimilarityDistillationLoss: ["divergence", "pool", "reduction", "direction", "tiled"],
    SigmoidLoss: ["tiled"],
    TripletLoss: ["negatives", "reduction", "direction"],
    WordAlignmentLoss: ["word_loss", "solver", "marginals"],
}


@pytest.mark.parametrize(("loss", "option"), [(k, o) for k, all_ in CHOICES.items() for o in all_])
def test_a_misspelt_choice_is_refused_with_those_there_are(loss, option):
    with pytest.raises(ValueError, match=rf"{option} must be one of .*, .*, got 'maximum'"):
        loss(**{option: "maximum"})
