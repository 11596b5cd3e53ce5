"""Which class of a file is the model, where several could be."""

from __future__ import annotations

import textwrap

import pytest

from anyformer.core.errors import ConstructError
from anyformer.models.source import load_model

PARTS = """
    from torch import nn
    class Embeds(nn.Module):
        def __init__(self):
            super().__init__()
            self.e = nn.Embedding(9, 4)
"""


def chosen(tmp_path, body: str) -> str:
    path = tmp_path / "model.py"
    path.write_text(textwrap.dedent(PARTS) + textwrap.dedent(body), encoding="utf-8")
    return load_model(path).provenance.class_name


def test_a_language_model_beside_other_heads(tmp_path):
    heads = ("GPT2LMHeadModel", "GPT2DoubleHeadsModel", "GPT2ForSequenceClassification")
    body = "".join(
        f"class {n}(nn.Module):\n    def __init__(self): super().__init__(); self.t = Embeds()\n" for n in heads
    )
    assert chosen(tmp_path, body) == "GPT2LMHeadModel"


def test_losses_and_unused_parts_are_no_models(tmp_path):
    body = """
        class LabelSmoothing(nn.Module): pass
        class SelfAttention_v1(nn.Module): pass
        class DummyGPT(Embeds): pass
        class GPTModel(nn.Module):
            def __init__(self):
                super().__init__()
                self.t = Embeds()
    """
    assert chosen(tmp_path, body) == "GPTModel"


def test_the_one_that_embeds_ids(tmp_path):
    body = """
        class Gate(nn.Module): pass
        class Whole(nn.Module):
            def __init__(self):
                super().__init__()
                self.t = Embeds()
    """
    assert chosen(tmp_path, body) == "Whole"


def test_the_one_that_main_builds(tmp_path):
    body = """
        class Alpha(Embeds): pass
        class Beta(Embeds): pass
        if __name__ == "__main__":
            net = Beta()
    """
    assert chosen(tmp_path, body) == "Beta"


def test_a_variable_that_is_called_like_a_global_uses_nothing(tmp_path):
    body = """
        class Part(nn.Module):
            def forward(self, model): return model.to(device)
        class Whole(Embeds):
            def __init__(self):
                super().__init__()
                self.p = Part()
        if __name__ == "__main__":
            device = Whole()
    """
    assert chosen(tmp_path, body) == "Whole"


def test_two_equal_models_are_left_to_the_user(tmp_path):
    with pytest.raises(ConstructError, match="several models: Alpha, Beta"):
        chosen(tmp_path, "class Alpha(Embeds): pass\nclass Beta(Embeds): pass\n")


ASSEMBLED = """
    from torch import nn
    class Residual(nn.Module):
        def __init__(self, fn):
            super().__init__()
            self.fn = fn
    class Swish(nn.Module): pass
    def FeedForward(dim):
        return nn.Sequential(nn.Linear(dim, dim), Swish())
    def PaLM(*, dim, num_tokens, depth):
        net = nn.Sequential(nn.Embedding(num_tokens, dim), *[Residual(FeedForward(dim)) for _ in range(depth)])
        nn.init.normal_(net[0].weight)
        return net
    if __name__ == "__main__":
        palm = PaLM(num_tokens=200, dim=8, depth=3)
"""


def test_a_function_that_assembles_the_parts_is_the_model(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(textwrap.dedent(ASSEMBLED), encoding="utf-8")
    loaded = load_model(path)
    assert loaded.provenance.class_name == "PaLM"
    assert [type(m).__name__ for m in loaded.module] == ["Embedding", "Residual", "Residual", "Residual"]
    assert loaded.module[0].weight.shape == (200, 8)
    again = load_model(f"{path}:{loaded.provenance.class_name}", config=loaded.provenance.config)
    assert again.module[0].weight.shape == (200, 8)


def test_a_function_that_only_calls_the_model_or_makes_something_else_is_not(tmp_path):
    body = """
        class GPT(nn.Module):
            def __init__(self, embed=None):
                super().__init__()
                self.e = embed or Embeds()
        def build():
            return GPT(nn.Embedding(9, 4))
        def measure(model):
            table = nn.Embedding(3, 3)
            return float(table.weight.sum())
        def bigram():
            return nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
    """
    assert chosen(tmp_path, body) == "GPT"


@pytest.mark.parametrize("handed", ["net: Whole", "net: 'Whole'"])
def test_a_wrapper_for_training_gives_way_to_the_model_that_it_takes(tmp_path, handed):
    body = f"""
        class Whole(Embeds): pass
        class WholeTrainer(nn.Module):
            def __init__(self, {handed}):
                super().__init__()
                self.net = net
    """
    assert chosen(tmp_path, body) == "Whole"


def test_a_trainer_that_is_the_model_stays(tmp_path):
    body = """
        class Block(nn.Module): pass
        class GPTTrainer(Embeds):
            def __init__(self):
                super().__init__()
                self.block = Block()
    """
    assert chosen(tmp_path, body) == "GPTTrainer"


def test_of_heads_around_one_body_the_language_models_is_taken(tmp_path):
    body = """
        class GPT(Embeds): pass
        class GPTLMHead(nn.Module):
            def __init__(self, gpt):
                super().__init__()
                self.gpt = gpt
        class GPTClsHead(nn.Module):
            def __init__(self, gpt):
                super().__init__()
                self.gpt = gpt
    """
    assert chosen(tmp_path, body) == "GPTLMHead"
    with pytest.raises(ConstructError, match="several models"):
        chosen(tmp_path, body.replace("GPTLMHead", "GPTScores").replace("GPTClsHead", "GPTTags"))


@pytest.mark.parametrize(("takes", "model"), [("batch", "Whole"), ("ids", "TextTask")])
def test_a_wrapper_that_takes_whole_batches_gives_way_to_the_model_that_it_is_handed(tmp_path, takes, model):
    body = f"""
        class Pictures(nn.Module): pass
        class Whole(Embeds): pass
        class Task(nn.Module):
            def __init__(self, net):
                super().__init__()
                self.net = net
            def forward(self, {takes}): return self.loss({takes})
        class PictureTask(Task): pass
        class TextTask(Task): pass
        def build(name):
            task = PictureTask(Pictures())
            if name == "text":
                task = TextTask(Whole())
            return task
    """
    assert chosen(tmp_path, body) == model


def test_a_table_of_embeddings_is_no_model_beside_one_that_is_built_from_parts(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(
        textwrap.dedent("""
        from torch import nn
        class Embeddings(nn.Module):
            def __init__(self):
                super().__init__()
                self.lut = nn.Embedding(9, 4)
        class FeedForwardNetwork(nn.Module): pass
        class Coder(nn.Module):
            def __init__(self, layer, N): super().__init__()
        class Transformer(nn.Module):
            def __init__(self, encoder: Coder, src_embed, generator): super().__init__()
    """)
    )
    with pytest.raises(ConstructError, match=r"Transformer|Coder needs"):
        load_model(path)
