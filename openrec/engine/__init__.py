"""The engine calls the other rooms in the order in which data flows: config, data, model, loss, metric."""
