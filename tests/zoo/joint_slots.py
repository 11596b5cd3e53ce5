from torch import nn


class JointBERT(nn.Module):
    """The intent of a text, and a slot for each of its tokens."""

    def __init__(self, vocab_size=96, d_model=24, num_intents=7, num_slots=11):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, d_model)
        self.rnn = nn.GRU(d_model, d_model // 2, batch_first=True, bidirectional=True)
        self.intent_classifier = nn.Linear(d_model, num_intents)
        self.slot_classifier = nn.Linear(d_model, num_slots)

    def forward(self, input_ids, intent_label_ids=None, slot_labels_ids=None):
        x, _ = self.rnn(self.word_embeddings(input_ids))
        return 0, (self.intent_classifier(x[:, 0]), self.slot_classifier(x))
