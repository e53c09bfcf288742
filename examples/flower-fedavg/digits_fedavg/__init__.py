"""FedAvg on handwritten digits, in three versions."""
