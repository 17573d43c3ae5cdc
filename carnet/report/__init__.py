"""What an evaluation and a training run have to say: sentences, pictures, one HTML file."""
