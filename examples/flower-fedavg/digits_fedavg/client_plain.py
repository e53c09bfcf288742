"""The client of Flower's FedAvg: everything in the clear."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_fedavg.task import Net, load_data
from digits_fedavg.task import test as test_fn
from digits_fedavg.task import train as train_fn

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that was sent on local data."""
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    batches, _ = load_data(context.node_config["client"], context.run_config["clients"])
    loss = train_fn(net, batches, context.run_config["epochs"], context.run_config["learning-rate"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(batches.dataset)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model that was sent on local data."""
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    _, batches = load_data(context.node_config["client"], context.run_config["clients"])
    loss, accuracy = test_fn(net, batches)
    metrics = MetricRecord(
        {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(batches.dataset)}
    )
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
