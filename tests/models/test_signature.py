"""What the inspector reads from a signature."""

from __future__ import annotations

import json

import torch
from torch import nn

from anyformer.models.signature import ModelSignatureInspector


class Plain(nn.Module):
    def forward(self, input_ids: torch.Tensor, attention_mask=None):
        return input_ids


class Builder(nn.Module):
    def forward(self, input_0_tokens, mhsa_0_output, residual_0_output, residual_1_output):
        return input_0_tokens


class Tricky(nn.Module):
    """Names that begin like intermediates, and one with a default."""

    def forward(self, tokens, attention_mask, mhsa_heads=2, ffn_0_output=None, *rest, **more):
        return tokens


def test_a_plain_signature():
    inspector = ModelSignatureInspector(Plain())
    assert inspector.get_parameters() == ["input_ids", "attention_mask"]
    assert inspector.get_required_params() == ["input_ids"]
    assert inspector.requires_intermediate_outputs() is False
    assert inspector.is_simple_signature() is True


def test_a_builder_export_needs_intermediates():
    inspector = ModelSignatureInspector(Builder())
    assert inspector.requires_intermediate_outputs() is True
    assert inspector.is_simple_signature() is False
    info = inspector.get_signature_info()
    assert info["intermediate_outputs"] == ["mhsa_0_output", "residual_0_output", "residual_1_output"]
    assert info["required"] == info["parameters"]
    assert inspector.get_node_outputs() == info["intermediate_outputs"]


def test_attention_mask_is_no_intermediate():
    inspector = ModelSignatureInspector(Tricky())
    assert inspector.get_parameters() == ["tokens", "attention_mask", "mhsa_heads", "ffn_0_output", "rest", "more"]
    assert inspector.get_required_params() == ["tokens", "attention_mask"]
    assert inspector.requires_intermediate_outputs() is False


def test_the_info_is_json():
    info = ModelSignatureInspector(Plain()).get_signature_info()
    assert json.loads(json.dumps(info)) == info
    assert info["defaults"] == {"attention_mask": "None"}


def test_a_compiled_module_is_read_through():
    assert ModelSignatureInspector(torch.compile(Plain())).get_parameters() == ["input_ids", "attention_mask"]
