"""Models that make vectors of texts, or ranks of documents: Qwen3's, BERT's relatives, EmbeddingGemma."""
import gguf
from gguf import GGMLQuantizationType as T

from tiny.builder import Model

# gguf's numbers of `pooling_type`.
MEAN, FIRST, LAST, RANK = 1, 2, 3, 4

WORDS = ("the of and a to in is you that it he was for on are with as his they be at one have this from or had by hot word "
         "but what some we can out other were all there when up use your how said an each she which do their time if will "
         "way about many then them write would like so these her long make thing see him two has look more day could go "
         "come did number sound no most people my over know water than call first who may down side been now find head "
         "stand own page should country found answer school grow study still learn plant cover food sun four between state "
         "keep eye never last let thought city tree cross farm hard start might story saw far sea draw left late run").split()
PIECES = "ing ed er est ly s es ion tion al ment ness able un re in th st nd ou ea".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MARKS = ".,;:!?'\"()-/&%$#@*+=<>[]_"
FOREIGN = "äöüßéñçøαβγδабвгд中文日本語ⅷ"

# Positions that BERTs have learned.
POSITIONS = 208

RERANK = ("<|im_start|>system\nJudge whether the Document meets the Query.<|im_end|>\n<|im_start|>user\n<Query>: {query}\n"
          "<Document>: {document}<|im_end|>\n<|im_start|>assistant\n")


def wordpieces(f):
    """A WordPiece vocabulary as converters write it: `▁` before what begins a word."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    begin = [f"▁{t}" for t in [*WORDS, *LETTERS, *MARKS, *FOREIGN]]
    follow = [*PIECES, *LETTERS, *FOREIGN]
    tokens = special + list(dict.fromkeys(begin + follow))
    w = f.writer
    f.n_vocab = len(tokens)
    w.add_tokenizer_model("bert")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.CONTROL] * len(special) + [gguf.TokenType.NORMAL] * (len(tokens) - len(special)))
    w.add_token_type_count(2)
    for add, text in ((w.add_pad_token_id, "[PAD]"), (w.add_unk_token_id, "[UNK]"), (w.add_bos_token_id, "[CLS]"),
                      (w.add_sep_token_id, "[SEP]"), (w.add_mask_token_id, "[MASK]")):
        add(tokens.index(text))


# What a normalisation makes of some texts: the longest counts.
CHARSMAP = {"ﬁ": "fi", "①": "1", "ⅷ": "viii", "Ａ": "A", "ａ": "a", "\t": " ", "\n": " ", "\u00a0": " ", "\u3000": " ", "…": "...",
            "e\u0301": "é", "é": "é", "½": "1/2", "\u200b": "", "か\u3099": "が"}


def charsmap(rules):
    """The double array of `rules`, compressed by exclusive or, and the texts behind it (see `src/tokenizer/unigram.rs`)."""
    texts, places, trie = b"", {}, {}
    for key, value in sorted(rules.items()):
        places[key] = len(texts)
        texts += value.encode() + b"\0"
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = places[key]
    nodes, taken = {0: 0}, {0}

    def place(index, node):
        """Finds a base for the children of the node at `index`."""
        base = 1
        while any((index ^ base ^ label) in taken for label in node):
            base += 1
        taken.update(index ^ base ^ label for label in node)
        nodes[index] |= base << 10 | (1 << 8 if 0 in node else 0)
        for label, child in node.items():
            at = index ^ base ^ label
            nodes[at] = child | 1 << 31 if label == 0 else label
        for label, child in node.items():
            if label:
                place(index ^ base ^ label, child)

    place(0, trie)
    size = (max(nodes) | 255) + 1
    # A free place leads nowhere: no byte has this label.
    array = b"".join(nodes.get(i, 1 << 31 | 0xff).to_bytes(4, "little") for i in range(size))
    return len(array).to_bytes(4, "little") + array + texts


def unigram(f, normalised=True):
    """A unigram vocabulary in the order of XLM-RoBERTa's."""
    special = [("<s>", gguf.TokenType.CONTROL), ("<pad>", gguf.TokenType.CONTROL), ("</s>", gguf.TokenType.CONTROL),
               ("<unk>", gguf.TokenType.UNKNOWN)]
    texts = list(dict.fromkeys([f"▁{t}" for t in WORDS] + WORDS + PIECES + [*LETTERS, *"ABCDEFG", *MARKS, *FOREIGN, "▁", "▁▁"]))
    tokens = special + [(text, gguf.TokenType.NORMAL) for text in texts] + [("<tag>", gguf.TokenType.USER_DEFINED)]
    scores = [0.0] * 4 + [-2.0 - 0.013 * i - (4.0 if len(text) == 1 else 0.0) for i, text in enumerate(texts)] + [0.0]
    w = f.writer
    f.n_vocab = len(tokens)
    w.add_tokenizer_model("t5")
    w.add_tokenizer_pre("default")
    w.add_token_list([text for text, _ in tokens])
    w.add_token_scores(scores)
    w.add_token_types([kind for _, kind in tokens])
    w.add_token_type_count(1)
    w.add_add_space_prefix(True)
    w.add_remove_extra_whitespaces(normalised)
    if normalised:
        w.add_precompiled_charsmap(charsmap(CHARSMAP))
    w.add_bos_token_id(0)
    w.add_pad_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(3)
    w.add_add_bos_token(True)
    w.add_add_eos_token(True)


def decoder(f, embd, layers, heads, kv, head_dim, ff, pooling, normed=True, **keys):
    """Qwen3-Embedding and Qwen3-Reranker; without norms of Q and K a Llama."""
    f.header(embd, layers, heads, kv, head_dim, ff, pooling_type=pooling, **keys)
    f.writer.add_add_eos_token(pooling != RANK)
    f.ends(embd, tied=True)
    if pooling == RANK:
        f.key("classifier.output_labels", ["yes", "no"])
        f.writer.add_chat_template([{"name": "rerank", "template": RERANK}])
        f.matrix("cls.output", 2, embd, 0.5)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(f"{b}attn_norm", embd)
        f.attention(b, embd, heads, kv, head_dim, normed=normed)
        f.norm(f"{b}ffn_norm", embd)
        f.ffn(b, embd, ff)


def bert(f, embd, layers, heads, ff, pooling, words=wordpieces, rotated=False):
    """BERT, or Nomic's (`rotated`)."""
    head_dim = embd // heads
    f.vocabulary = lambda: words(f)
    keys = {"eps": None, "attention__layer_norm_epsilon": 1e-12, "attention__causal": False, "pooling_type": pooling,
            "base": 1e3 if rotated else None, "context_length": POSITIONS}
    if not rotated:
        keys |= {"rope__dimension_count": None}
    f.header(embd, layers, heads, heads, head_dim, ff, **keys)
    f.matrix("token_embd", f.n_vocab, embd, embd ** 0.5)
    f.vector("token_types.weight", (1 if words is unigram else 2, embd), 0.5)
    if not rotated:
        f.matrix("position_embd", POSITIONS, embd, 0.7 * embd ** 0.5, kind=T.F32)
    f.norm("token_embd_norm", embd, bias=0.2)
    for i in range(layers):
        b = f"blk.{i}."
        if rotated:
            f.matrix(f"{b}attn_qkv", 3 * embd, embd, 1.5)
            f.matrix(f"{b}attn_output", embd, embd)
            f.ffn(b, embd, ff)
        else:
            f.attention(b, embd, heads, heads, head_dim, biases="q k v output")
            f.ffn(b, embd, ff, gated=False, biases="up down")
        f.norm(f"{b}attn_output_norm", embd, bias=0.2)
        f.norm(f"{b}layer_output_norm", embd, bias=0.2)
    if pooling == RANK:
        f.matrix("cls", embd, embd, 1.0, 0.3)
        f.matrix("cls.output", 1, embd, 2.0, 0.3)


def gemma(f, embd, layers, heads, kv, head_dim, ff, window, dense):
    """EmbeddingGemma. `dense`: values between the two maps behind the mean, if it has them."""
    f.header(embd, layers, heads, kv, head_dim, ff, base=1e6, eps=1e-6, pooling_type=MEAN, attention__sliding_window=window,
             attention__sliding_window_pattern=3)
    f.writer.add_add_eos_token(True)
    f.ends(embd, scale=embd ** 0.5)
    if dense:
        f.keys(dense_2_feat_in=embd, dense_2_feat_out=dense, dense_3_feat_in=dense, dense_3_feat_out=embd)
        f.matrix("dense_2", dense, embd)
        f.matrix("dense_3", embd, dense)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(f"{b}attn_norm", embd)
        f.attention(b, embd, heads, kv, head_dim, normed=True)
        f.norm(f"{b}post_attention_norm", embd)
        f.norm(f"{b}ffn_norm", embd)
        f.ffn(b, embd, ff)
        f.norm(f"{b}post_ffw_norm", embd)


QWEN3 = dict(embd=36, layers=2, heads=4, kv=2, head_dim=10, ff=52, pooling=LAST)
BERT = dict(embd=36, layers=2, heads=3, ff=52, pooling=MEAN)
GEMMA = dict(embd=36, layers=3, heads=3, kv=1, head_dim=14, ff=40, window=30, dense=52)
# Whole blocks.
WIDE_QWEN3 = QWEN3 | dict(embd=64, heads=2, kv=1, head_dim=32, ff=64)
WIDE_BERT = BERT | dict(embd=64, heads=2, ff=64)
WIDE_GEMMA = GEMMA | dict(embd=64, heads=2, head_dim=32, ff=64, dense=96)

MODELS = {
    "qwen3-embedding-f32": Model("qwen3", decoder, QWEN3),
    "qwen3-embedding-q8_0": Model("qwen3", decoder, WIDE_QWEN3, T.Q8_0),
    "qwen3-embedding-q4_0": Model("qwen3", decoder, WIDE_QWEN3, T.Q4_0),
    "qwen3-mean-f32": Model("qwen3", decoder, QWEN3 | dict(layers=1, pooling=MEAN)),
    "qwen3-reranker-f32": Model("qwen3", decoder, QWEN3 | dict(pooling=RANK)),
    "qwen3-reranker-q8_0": Model("qwen3", decoder, WIDE_QWEN3 | dict(pooling=RANK), T.Q8_0),
    "llama-embed-f32": Model("llama-embed", decoder, QWEN3 | dict(pooling=MEAN, normed=False, attention__causal=False)),
    "bert-f32": Model("bert", bert, BERT),
    "bert-q8_0": Model("bert", bert, WIDE_BERT, T.Q8_0),
    "bert-q4_0": Model("bert", bert, WIDE_BERT, T.Q4_0),
    "bert-unigram-f32": Model("bert", bert, BERT | dict(pooling=FIRST, words=unigram)),
    "bert-reranker-f32": Model("bert", bert, BERT | dict(pooling=RANK, words=unigram)),
    "bert-reranker-words-f32": Model("bert", bert, BERT | dict(layers=1, pooling=RANK)),
    "bert-reranker-q8_0": Model("bert", bert, WIDE_BERT | dict(pooling=RANK, words=unigram), T.Q8_0),
    "nomic-bert-f32": Model("nomic-bert", bert, BERT | dict(rotated=True)),
    "nomic-bert-q8_0": Model("nomic-bert", bert, WIDE_BERT | dict(rotated=True), T.Q8_0),
    "nomic-bert-q4_0": Model("nomic-bert", bert, WIDE_BERT | dict(rotated=True), T.Q4_0),
    "gemma-embedding-f32": Model("gemma-embedding", gemma, GEMMA),
    "gemma-embedding-plain-f32": Model("gemma-embedding", gemma, GEMMA | dict(dense=0)),
    "gemma-embedding-q8_0": Model("gemma-embedding", gemma, WIDE_GEMMA, T.Q8_0),
    "gemma-embedding-q4_0": Model("gemma-embedding", gemma, WIDE_GEMMA, T.Q4_0),
}
