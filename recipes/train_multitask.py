"""Train one encoder on several tasks: `bert-multitask train`, of a checkout.

accelerate launch recipes/train_multitask.py CONFIG.yaml --data_dir DATA --output_dir RUN
"""

from bert_multitask.commands.train import main
from bert_multitask.training.run import run_recipe

if __name__ == "__main__":
    run_recipe(main)
