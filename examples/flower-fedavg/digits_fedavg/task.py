"""Model, data and training, as in Flower's quickstart for PyTorch; no masks here."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

_BATCH = 16


class Net(nn.Module):
    """A small CNN for 8 x 8 pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 3, padding=1)
        self.fc1 = nn.Linear(16 * 2 * 2, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (batch, 10)."""
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc2(x)
        return logits


def load_data(client: int, clients: int) -> tuple[DataLoader, DataLoader]:
    """Return one client's training and test batches: every `clients`-th picture is its own."""
    digits = load_digits()
    images = torch.tensor(digits.images[client::clients] / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target[client::clients])
    cut = len(labels) * 4 // 5
    train = TensorDataset(images[:cut], labels[:cut])
    test = TensorDataset(images[cut:], labels[cut:])
    return DataLoader(train, _BATCH, shuffle=True), DataLoader(test, _BATCH)


def train(net: Net, batches: DataLoader, epochs: int, learning_rate: float) -> float:
    """Train in place; return the mean loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate, momentum=0.9)
    net.train()
    total = 0.0
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(batches))


@torch.no_grad()
def test(net: Net, batches: DataLoader) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    net.eval()
    loss, correct, seen = 0.0, 0, 0
    for images, labels in batches:
        logits = net(images)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
    return loss / seen, correct / seen
