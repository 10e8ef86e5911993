"""From pictures to texts with a trained model: inputs, preprocessing, batches, results. ``openrec.load`` is the door."""
