"""
Supervised lessons for small models, shared by the examples that make one from scratch or let one imitate.

A row is `(token ids, which of them are trained)`. Rows are drawn by functions without arguments, batched by length
([`batches`]), and learned in single steps ([`step`]) or stage by stage ([`train`]). [`start_with_induction`] and [`look_back`]
set the first attention heads by hand, so that copying is learned in minutes instead of an hour.
"""

import copy
import time

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EMBEDDING_SCALE = 0.1  # standard deviation of an embedding


def word_tokenizer(words, tags):
    """One token per word, mark and tag; text comes back with single spaces."""
    vocabulary = ["<pad>", "<eos>", "<unk>", *words]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return tokenizer


def copying_exercise(rng, words, source, length):
    """Random words, then pieces of them again and again; trained from the third word of a piece on."""
    alphabet = rng.sample(words, rng.randint(12, 40))
    text = [rng.choice(alphabet) for _ in range(rng.randint(*source))]
    ids, trained = list(text), [False] * len(text)
    while len(ids) < length:
        start = rng.randrange(len(text) - 2)
        piece = text[start : start + rng.randint(3, 16)]
        ids += piece
        trained += [False, False] + [True] * (len(piece) - 2)
    return ids, trained


def batches(draw, rng, tokens_per_batch, rows=512):
    """Batches of rows of similar length, each padded to at most `tokens_per_batch` tokens, in random order."""
    cut = [[]]
    for row in sorted((draw() for _ in range(rows)), key=lambda row: len(row[0])):
        if cut[-1] and (len(cut[-1]) + 1) * len(row[0]) > tokens_per_batch:
            cut.append([])
        cut[-1].append(row)
    rng.shuffle(cut)
    return cut


def completion_row(context, completion):
    """A row of token ids of which the completion is trained."""
    return [*context, *completion], [False] * len(context) + [True] * len(completion)


def padded(rows, pad_id):
    """Token ids and trained flags of rows, padded on the right, where nothing reads it, so that no mask is needed."""
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([ids + [pad_id] * (length - len(ids)) for ids, _ in rows])
    return input_ids, torch.tensor([flags + [False] * (length - len(flags)) for _, flags in rows])


def logits_and_targets(model, rows, pad_id):
    """Logits and targets at the trained tokens, and the row of each."""
    input_ids, trained = padded(rows, pad_id)
    trained = trained[:, 1:]
    hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state
    return model.lm_head(hidden[:, :-1][trained]), input_ids[:, 1:][trained], trained.nonzero()[:, 0]


def masked_loss(model, rows, pad_id):
    """Mean cross-entropy in nats over the trained tokens."""
    logits, targets, _ = logits_and_targets(model, rows, pad_id)
    return F.cross_entropy(logits, targets)


def whole_loss(model, rows, pad_id):
    """
    [`masked_loss`] as transformers computes it, from the logits of all tokens. It rounds differently; examples whose numbers are
    published keep the loss that they were measured with.
    """
    input_ids, trained = padded(rows, pad_id)
    return model(input_ids=input_ids, labels=input_ids.masked_fill(~trained, -100)).loss


def step(model, loss, optimizer, largest_norm=None):
    """One step of an optimizer, with the gradient cut to `largest_norm`. Returns the loss as a number."""
    loss.backward()
    if largest_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), largest_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def train(
    model, stages, steps, next_batches, pad_id, *, learning_rate, beta2, final_share, check=None, check_every=None
):
    """
    Mean of the last losses of each stage, after AdamW with a linear warm-up and decay.

    Args:
        stages: `(name, share of the steps, function that draws a row)`, learned one after the other.
        next_batches: Function from a function that draws a row to a list of batches.
        learning_rate, beta2: Settings of AdamW.
        final_share: Share of the learning rate that the decay ends at.
        check: Function without arguments, called every `check_every` steps; its result is printed.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, beta2), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 50) * max(final_share, 1.0 - s / steps)
    )
    final, start, done = {}, time.monotonic(), 0
    for name, share, draw in stages:
        losses, waiting = [], []
        for _ in range(max(1, round(share * steps))):
            waiting = waiting or next_batches(draw)
            losses.append(step(model, masked_loss(model, waiting.pop(), pad_id), optimizer, 1.0))
            schedule.step()
            done += 1
            if done % 50 == 0:
                mean = sum(losses[-50:]) / len(losses[-50:])
                print(f"{done}/{steps} {name}: {mean:.3f} nats, {time.monotonic() - start:.0f} s", flush=True)
            if check is not None and done % check_every == 0:
                print(f"  {check()}", flush=True)
        final[name] = round(sum(losses[-50:]) / len(losses[-50:]), 4)
    return final


def save_start(model, tokenizer, protocol, place):
    """Weights in half precision, tokenizer and protocol, in a folder of their own."""
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    copy.deepcopy(model).to(torch.float16).save_pretrained(place)
    tokenizer.save_pretrained(place)
    protocol.save_pretrained(place)


# First weights


def small_llama(tokenizer, seed):
    """A Llama of three layers, 0.6 million parameters and room for a long history, before [`Heads`] are set."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        head_dim=64,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e8},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def rotary_frequencies(config):
    """Angle by which each rotary pair turns from one position to the next."""
    pairs = torch.arange(config.head_dim // 2)
    return config.rope_parameters["rope_theta"] ** (-pairs / (config.head_dim // 2))


@torch.no_grad()
def start_with_induction(model, layers):
    """
    Prepare a Llama for a circuit that continues repeated text (Olsson et al., "In-context learning and induction heads",
    2022), and return the attention of its first `layers` layers, whose heads the caller then sets by hand.

    The first half of the residual stream holds the token, the second half is empty. The last number of the first half is
    the same for all tokens: it lets a head attend by position alone. From random weights such a circuit takes most of an
    hour of one core to appear; from weights set by hand, training has to sharpen it.
    """
    half = model.config.hidden_size // 2
    attentions = [layer.self_attn for layer in model.model.layers[:layers]]
    for attention in attentions:
        for matrix in (attention.v_proj, attention.o_proj):
            matrix.weight *= 0.05
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, EMBEDDING_SCALE)[:, half - 1 :] = 0
    embedding[:, half - 1] = 6 * EMBEDDING_SCALE
    return attentions


def always(config):
    """The direction in which all tokens are the same, for [`look_back`]."""
    half = config.hidden_size // 2
    return F.one_hot(torch.tensor(half - 1), half).float()


@torch.no_grad()
def look_back(attention, head, steps, turning, strength, when):
    """
    Make one head attend `steps` tokens back.

    Args:
        turning (`torch.Tensor` of shape `(head_dim / 2,)`):
            Weight of each rotary pair; the fast ones tell neighbours apart.
        when (`torch.Tensor` of shape `(hidden_size / 2,)`):
            The head looks back as far as the token is in this direction ([`always`] for every token).
    """
    config = attention.config
    half, dim = config.hidden_size // 2, config.head_dim
    frequencies = rotary_frequencies(config)
    rows = slice(head * dim, (head + 1) * dim)
    turned = torch.cat([turning * torch.cos(steps * frequencies), -turning * torch.sin(steps * frequencies)])
    attention.k_proj.weight[rows, half - 1] += strength * torch.cat([turning, 0 * turning])
    attention.q_proj.weight[rows, :half] += turned[:, None] * when


class Heads:
    """
    Sets attention heads of a [`small_llama`] by hand.

    The residual stream holds the token (64 numbers), the token before it (32) and the one before that (32).
    """

    @torch.no_grad()
    def __init__(self, model, layers):
        config = model.config
        self.dim, self.half = config.head_dim, config.hidden_size // 2
        self.quarter = config.hidden_size // 4
        self.token = slice(0, self.half)
        self.last = slice(self.half, self.half + self.quarter)
        self.last_but_one = slice(self.half + self.quarter, config.hidden_size)
        self.everywhere = always(config)
        # Rotary pairs that barely turn within a context compare content; fast ones tell neighbours apart
        self.slow = (rotary_frequencies(config) < 0.004).nonzero().flatten()
        self.fast = (torch.arange(self.dim // 2) < 6).float()
        # What is kept of an earlier token
        self.down = torch.nn.init.orthogonal_(torch.empty(self.quarter, self.half))
        self.layers = start_with_induction(model, layers)

    @torch.no_grad()
    def look_for(self, layer, head, wanted):
        """Attend to positions whose `there` is our `here`, for each `(here, there)` of `wanted`."""
        for part, (here, there) in enumerate(wanted):
            mix = torch.nn.init.orthogonal_(torch.empty(self.quarter, self.quarter))[: len(self.slow)]
            rows = self.slow + head * self.dim + part * (self.dim // 2)
            attention = self.layers[layer]
            for matrix, place in ((attention.q_proj, here), (attention.k_proj, there)):
                matrix.weight[rows, place] += 3 * (mix @ self.down if place == self.token else mix)
                matrix.weight[rows, self.half - 1] = 0

    @torch.no_grad()
    def pass_on(self, layer, head, source, target, strength):
        """Write what is at `source` where the head attends into `target` here."""
        rows = slice(head * self.dim, (head + 1) * self.dim)
        rotation = torch.nn.init.orthogonal_(torch.empty(self.dim, self.half))
        attention = self.layers[layer]
        attention.v_proj.weight[rows, source] = rotation if source == self.token else rotation @ self.down.T
        attention.o_proj.weight[target, rows] = (
            strength * EMBEDDING_SCALE * (rotation.T if target == self.token else self.down @ rotation.T)
        )

    def remember(self):
        """Layer 0 writes what stood one and two tokens ago."""
        for head, steps in ((0, 1), (1, 2), (2, 1)):
            look_back(self.layers[0], head, steps, self.fast, 1.5, 1.5 * self.everywhere)
            self.pass_on(0, head, self.token, self.last if steps == 1 else self.last_but_one, 1 if steps == 2 else 0.5)

    def continue_text(self):
        """Layer 1 looks for positions whose last two tokens were the current and the last one, and passes on the token there."""
        for head in (0, 1):
            self.look_for(1, head, [(self.token, self.last), (self.last, self.last_but_one)])
            self.pass_on(1, head, self.token, self.token, 1)
