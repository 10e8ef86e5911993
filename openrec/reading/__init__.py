"""From pictures to texts with a trained model: inputs, preprocessing, batches. ``openrec.load`` is the door."""
