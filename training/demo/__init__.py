"""Trains and measures the demo encoders.

world.py, sketches.py    draw scenes of shapes and things, with captions and boxes
vocabulary.py            chooses the reduced CLIP vocabulary that their text tower reads
train.py, objective.py   train them:    python -m training.demo.train --help
evaluate.py              measure them:  python -m training.demo.evaluate --help
samples.py               draws what the page offers to look at:  python -m training.demo.samples --help
"""
