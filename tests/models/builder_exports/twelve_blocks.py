"""A model as the visual builder exports it: twelve blocks at full size."""

import torch
import torch.nn as nn


class CustomTransformer(nn.Module):
    """163 million parameters, sizes hard-coded."""

    def __init__(self):
        super().__init__()
        # node: embedding_0
        self.embedding_0_token = nn.Embedding(50257, 768)
        self.embedding_0_pos = nn.Embedding(512, 768)
        self.embedding_0_dropout = nn.Dropout(0.1)
        # node: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(embed_dim=768, num_heads=12, dropout=0.1, batch_first=True)
        # node: residual_0
        # node: layernorm_0
        self.layernorm_0 = nn.LayerNorm(768)
        # node: ffn_0
        self.ffn_0 = nn.Sequential(
            nn.Linear(768, 3072), nn.GELU(), nn.Dropout(0.1), nn.Linear(3072, 768), nn.Dropout(0.1)
        )
        # node: residual_1
        # node: layernorm_1
        self.layernorm_1 = nn.LayerNorm(768)
        # node: mhsa_1
        self.mhsa_1 = nn.MultiheadAttention(embed_dim=768, num_heads=12, dropout=0.1, batch_first=True)
        # node: residual_2
        # node: layernorm_2
        self.layernorm_2 = nn.LayerNorm(768)
        # node: ffn_1
        self.ffn_1 = nn.Sequential(
            nn.Linear(768, 3072), nn.GELU(), nn.Dropout(0.1), nn.Linear(3072, 768), nn.Dropout(0.1)
        )
        # node: residual_3
        # node: layernorm_3
        self.layernorm_3 = nn.LayerNorm(768)
        # node: mhsa_2
        self.mhsa_2 = nn.MultiheadAttention(embed_dim=768, num_heads=12, dropout=0.1, batch_first=True)
        # node: residual_4
        # node: layernorm_4
        self.layernorm_4 = nn.LayerNorm(768)
        # node: ffn_2
        self.ffn_2 = nn.Sequential(
            nn.Linear(768, 3072), nn.GELU(), nn.Dropout(0.1), nn.Linear(3072, 768), nn.Dropout(0.1)
        )
        # node: residual_5
        # node: layernorm_5
        self.layernorm_5 = nn.LayerNorm(768)
        # node: mhsa_3
        self.mhsa_3 = nn.MultiheadAttention(embed_dim=768, num_heads=12, dropout=0.1, batch_first=True)
        # node: residual_6
        # node: layernorm_6
        self.layernorm_6 = nn.LayerNorm(768)
        # node: ffn_3
        self.ffn_3 = nn.Sequential(
            nn.Linear(768, 3072), nn.GELU(), nn.Dropout(0.1), nn.Linear(3072, 768), nn.Dropout(0.1)
        )
        # node: residual_7
        # node: layernorm_7
        self.layernorm_7 = nn.LayerNorm(768)
        # node: mhsa_4
        self.mhsa_4 = nn.MultiheadAttention(embed_dim=768, num_heads=12, dropout=0.1, batch_first=True)
        # node: residual_8
        # node: layernorm_8
        self.layernorm_8 = nn.LayerNorm(768)
        # node: ffn_4
        self.ffn_4 = nn.Sequential(
            nn.Linear(768, 3072), nn.GELU(), nn.Dropout(0.1), nn.Linear(3072, 768), nn.Dropout(0.1)
        )
        # node: residual_9
        # node: layernorm_9
        self.layernorm_9 = nn.LayerNorm(768)
        # node: mhsa_5
        self.mhsa_5 = nn.MultiheadAttention(embed_dim=768, num_heads=12, dropout=0.1, batch_first=True)
        # node: residual_10
        # node: layernorm_10
        self.layernorm_10 = nn.LayerNorm(768)
        # node: ffn_5
        self.ffn_5 = nn.Sequential(
            nn.Linear(768, 3072), nn.GELU(), nn.Dropout(0.1), nn.Linear(3072, 768), nn.Dropout(0.1)
        )
        # node: residual_11
        # node: layernorm_11
        self.layernorm_11 = nn.LayerNorm(768)
        # node: mhsa_6
        self.mhsa_6 = nn.MultiheadAttention(embed_dim=768, num_heads=12, dropout=0.1, batch_first=True)
        # node: residual_12
        # node: layernorm_12
        self.layernorm_12 = nn.LayerNorm(768)
        # node: ffn_6
        self.ffn_6 = nn.Sequential(
            nn.Linear(768, 3072), nn.GELU(), nn.Dropout(0.1), nn.Linear(3072, 768), nn.Dropout(0.1)
        )
        # node: residual_13
        # node: layernorm_13
        self.layernorm_13 = nn.LayerNorm(768)
        # node: mhsa_7
        self.mhsa_7 = nn.MultiheadAttention(embed_dim=768, num_heads=12, dropout=0.1, batch_first=True)
        # node: residual_14
        # node: layernorm_14
        self.layernorm_14 = nn.LayerNorm(768)
        # node: ffn_7
        self.ffn_7 = nn.Sequential(
            nn.Linear(768, 3072), nn.GELU(), nn.Dropout(0.1), nn.Linear(3072, 768), nn.Dropout(0.1)
        )
        # node: residual_15
        # node: layernorm_15
        self.layernorm_15 = nn.LayerNorm(768)
        # node: mhsa_8
        self.mhsa_8 = nn.MultiheadAttention(embed_dim=768, num_heads=12, dropout=0.1, batch_first=True)
        # node: residual_16
        # node: layernorm_16
        self.layernorm_16 = nn.LayerNorm(768)
        # node: ffn_8
        self.ffn_8 = nn.Sequential(
            nn.Linear(768, 3072), nn.GELU(), nn.Dropout(0.1), nn.Linear(3072, 768), nn.Dropout(0.1)
        )
        # node: residual_17
        # node: layernorm_17
        self.layernorm_17 = nn.LayerNorm(768)
        # node: mhsa_9
        self.mhsa_9 = nn.MultiheadAttention(embed_dim=768, num_heads=12, dropout=0.1, batch_first=True)
        # node: residual_18
        # node: layernorm_18
        self.layernorm_18 = nn.LayerNorm(768)
        # node: ffn_9
        self.ffn_9 = nn.Sequential(
            nn.Linear(768, 3072), nn.GELU(), nn.Dropout(0.1), nn.Linear(3072, 768), nn.Dropout(0.1)
        )
        # node: residual_19
        # node: layernorm_19
        self.layernorm_19 = nn.LayerNorm(768)
        # node: mhsa_10
        self.mhsa_10 = nn.MultiheadAttention(embed_dim=768, num_heads=12, dropout=0.1, batch_first=True)
        # node: residual_20
        # node: layernorm_20
        self.layernorm_20 = nn.LayerNorm(768)
        # node: ffn_10
        self.ffn_10 = nn.Sequential(
            nn.Linear(768, 3072), nn.GELU(), nn.Dropout(0.1), nn.Linear(3072, 768), nn.Dropout(0.1)
        )
        # node: residual_21
        # node: layernorm_21
        self.layernorm_21 = nn.LayerNorm(768)
        # node: mhsa_11
        self.mhsa_11 = nn.MultiheadAttention(embed_dim=768, num_heads=12, dropout=0.1, batch_first=True)
        # node: residual_22
        # node: layernorm_22
        self.layernorm_22 = nn.LayerNorm(768)
        # node: ffn_11
        self.ffn_11 = nn.Sequential(
            nn.Linear(768, 3072), nn.GELU(), nn.Dropout(0.1), nn.Linear(3072, 768), nn.Dropout(0.1)
        )
        # node: residual_23
        # node: layernorm_23
        self.layernorm_23 = nn.LayerNorm(768)
        # node: output_0
        self.output_0 = nn.Linear(768, 50257)

    def forward(
        self,
        input_0_tokens,
        mhsa_0_output,
        residual_0_output,
        residual_1_output,
        mhsa_1_output,
        residual_2_output,
        residual_3_output,
        mhsa_2_output,
        residual_4_output,
        residual_5_output,
        mhsa_3_output,
        residual_6_output,
        residual_7_output,
        mhsa_4_output,
        residual_8_output,
        residual_9_output,
        mhsa_5_output,
        residual_10_output,
        residual_11_output,
        mhsa_6_output,
        residual_12_output,
        residual_13_output,
        mhsa_7_output,
        residual_14_output,
        residual_15_output,
        mhsa_8_output,
        residual_16_output,
        residual_17_output,
        mhsa_9_output,
        residual_18_output,
        residual_19_output,
        mhsa_10_output,
        residual_20_output,
        residual_21_output,
        mhsa_11_output,
        residual_22_output,
        residual_23_output,
    ):
        positions = torch.arange(input_0_tokens.size(1), device=input_0_tokens.device)
        embedding_0_output = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(positions)
        embedding_0_output = self.embedding_0_dropout(embedding_0_output)
        mhsa_0_output, _ = self.mhsa_0(embedding_0_output, embedding_0_output, embedding_0_output)
        layernorm_0_output = self.layernorm_0(residual_0_output)
        ffn_0_output = self.ffn_0(layernorm_0_output)
        layernorm_1_output = self.layernorm_1(residual_1_output)
        mhsa_1_output, _ = self.mhsa_1(layernorm_1_output, layernorm_1_output, layernorm_1_output)
        layernorm_2_output = self.layernorm_2(residual_2_output)
        ffn_1_output = self.ffn_1(layernorm_2_output)
        layernorm_3_output = self.layernorm_3(residual_3_output)
        mhsa_2_output, _ = self.mhsa_2(layernorm_3_output, layernorm_3_output, layernorm_3_output)
        layernorm_4_output = self.layernorm_4(residual_4_output)
        ffn_2_output = self.ffn_2(layernorm_4_output)
        layernorm_5_output = self.layernorm_5(residual_5_output)
        mhsa_3_output, _ = self.mhsa_3(layernorm_5_output, layernorm_5_output, layernorm_5_output)
        layernorm_6_output = self.layernorm_6(residual_6_output)
        ffn_3_output = self.ffn_3(layernorm_6_output)
        layernorm_7_output = self.layernorm_7(residual_7_output)
        mhsa_4_output, _ = self.mhsa_4(layernorm_7_output, layernorm_7_output, layernorm_7_output)
        layernorm_8_output = self.layernorm_8(residual_8_output)
        ffn_4_output = self.ffn_4(layernorm_8_output)
        layernorm_9_output = self.layernorm_9(residual_9_output)
        mhsa_5_output, _ = self.mhsa_5(layernorm_9_output, layernorm_9_output, layernorm_9_output)
        layernorm_10_output = self.layernorm_10(residual_10_output)
        ffn_5_output = self.ffn_5(layernorm_10_output)
        layernorm_11_output = self.layernorm_11(residual_11_output)
        mhsa_6_output, _ = self.mhsa_6(layernorm_11_output, layernorm_11_output, layernorm_11_output)
        layernorm_12_output = self.layernorm_12(residual_12_output)
        ffn_6_output = self.ffn_6(layernorm_12_output)
        layernorm_13_output = self.layernorm_13(residual_13_output)
        mhsa_7_output, _ = self.mhsa_7(layernorm_13_output, layernorm_13_output, layernorm_13_output)
        layernorm_14_output = self.layernorm_14(residual_14_output)
        ffn_7_output = self.ffn_7(layernorm_14_output)
        layernorm_15_output = self.layernorm_15(residual_15_output)
        mhsa_8_output, _ = self.mhsa_8(layernorm_15_output, layernorm_15_output, layernorm_15_output)
        layernorm_16_output = self.layernorm_16(residual_16_output)
        ffn_8_output = self.ffn_8(layernorm_16_output)
        layernorm_17_output = self.layernorm_17(residual_17_output)
        mhsa_9_output, _ = self.mhsa_9(layernorm_17_output, layernorm_17_output, layernorm_17_output)
        layernorm_18_output = self.layernorm_18(residual_18_output)
        ffn_9_output = self.ffn_9(layernorm_18_output)
        layernorm_19_output = self.layernorm_19(residual_19_output)
        mhsa_10_output, _ = self.mhsa_10(layernorm_19_output, layernorm_19_output, layernorm_19_output)
        layernorm_20_output = self.layernorm_20(residual_20_output)
        ffn_10_output = self.ffn_10(layernorm_20_output)
        layernorm_21_output = self.layernorm_21(residual_21_output)
        mhsa_11_output, _ = self.mhsa_11(layernorm_21_output, layernorm_21_output, layernorm_21_output)
        layernorm_22_output = self.layernorm_22(residual_22_output)
        ffn_11_output = self.ffn_11(layernorm_22_output)
        layernorm_23_output = self.layernorm_23(residual_23_output)
        return output_0_logits
