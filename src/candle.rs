//! ALiBi attention for candle tensors.
