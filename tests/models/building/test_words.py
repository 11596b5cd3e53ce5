"""What a name means by its words, beside the list of names that people were seen to use."""

from __future__ import annotations

import pytest

from anyformer.models.building.aliases import PARENTS
from anyformer.models.building.spellings import GROUPS
from anyformer.models.building.words import meaning_of

OTHERWISE = {"d_hid"}  # of feed-forward layers in nn.Transformer's own tutorial; by its words any hidden width


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("tgt_sos_idx", "bos_id"),
        ("pad_token_id_smiles", "pad_id"),
        ("korean_bos_idx", "bos_id"),
        ("encoder_padding_token_id", "src_pad_id"),
        ("n_targets", "num_classes"),
        ("num_sentiment_classes", "num_classes"),
        ("decoderStackDepth", "n_decoder_layers"),
        ("maxSeqLen", "max_len"),
        ("feedForwardDim", "d_ff"),
        ("dModel", "d_model"),
        ("wordDim", "d_model"),
        ("enc_dropout_ratio", "dropout"),
        ("numCharacters", "vocab_size"),
        ("kvHeadCount", "n_kv_heads"),
        ("k_moe", "experts_per_token"),
        ("activeExpertCount", "experts_per_token"),
        ("moeExperts_count", "n_experts"),
        ("num_slot_labels", "num_classes"),
    ],
)
def test_the_words_of_a_name_say_what_it_means(name: str, meaning: str) -> None:
    assert not any(name in names for names in GROUPS.values())  # else the list would answer
    assert meaning_of(name) == meaning


@pytest.mark.parametrize(
    "name",
    [
        *("matrix_dim", "latent_dim", "input_dim", "output_dim", "target_dim", "pos_dim", "layer_size", "token"),
        *("pad", "no_dropout", "dropout_layer", "num_layers_per_block_of_experts", "head", "model", "text", "x", ""),
        *("start_index", "end_idx", "num_mlp_layers", "num_ff_layers", "num_output_tokens", "no_heads", "total_tokens"),
        *("layer_norm_eps", "use_dropout", "flash", "mask_token_id", "block", "attention", "word2vec"),
        *("smiles_pad_id_iupac", "vocab_size_of_smiles", "smiles"),
    ],
)
def test_words_that_say_too_little_say_nothing(name: str) -> None:
    assert meaning_of(name) is None


def test_it_never_contradicts_the_list_of_names() -> None:
    """The list was written from public files; the words know more than half of it, and nothing else."""
    known = {n: m for m, names in GROUPS.items() for n in names if n not in OTHERWISE}
    said = {n: meaning_of(n) for n in known}
    wrong = {n: s for n, s in said.items() if s not in (None, known[n], PARENTS.get(known[n]))}
    assert wrong == {}
    assert sum(s is not None for s in said.values()) > 0.6 * len(said)
