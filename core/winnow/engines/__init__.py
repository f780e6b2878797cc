"""What turns token ids into logits: `base` holds the protocol, `choose` picks, the others are one engine each."""
