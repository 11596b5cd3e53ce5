"""How good is it? Baselines, held-out loss, bits per byte, generated text."""

from anyformer.evaluation.baselines import Baselines, token_entropies
from anyformer.evaluation.generation import generate, stream
from anyformer.evaluation.scoring import Scores, score_tokens

__all__ = ["Baselines", "Scores", "generate", "score_tokens", "stream", "token_entropies"]
