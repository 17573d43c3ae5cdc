"""The page that classifies photos: served beside a service, or as a folder with the model inside the browser."""
