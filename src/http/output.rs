//! Vectors as replies carry them: element types and their two encodings.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// `encoding_format`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A JSON list of numbers.
    #[default]
    Float,
    /// The elements' bytes, little-endian, in base64.
    Base64,
}

/// `output_dtype`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// f32.
    #[default]
    #[serde(alias = "float32")]
    Float,
    /// [-1, 1] to -128..=127, as sentence-transformers' `quantize_embeddings` with these ranges.
    Int8,
    /// [-1, 1] to 0..=255, likewise.
    Uint8,
    /// Signs, eight to a byte, first dimension in the highest bit; the byte minus 128.
    Binary,
    /// Signs, eight to a byte, first dimension in the highest bit.
    Ubinary,
}

/// One vector in a reply.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Output {
    /// Numbers.
    Floats(Vec<f32>),
    /// Quantized numbers.
    Integers(Vec<i16>),
    /// Bytes.
    Base64(String),
}

impl Output {
    /// Encodes a vector; anything but `Float` expects elements in [-1, 1].
    pub fn new(vector: Vec<f32>, dtype: Dtype, format: Format) -> Self {
        let bytes = match (dtype, format) {
            (Dtype::Float, Format::Float) => return Self::Floats(vector),
            (Dtype::Float, Format::Base64) => vector.iter().flat_map(|v| v.to_le_bytes()).collect(),
            (Dtype::Int8 | Dtype::Uint8, _) => vector.iter().map(|v| level(*v)).collect(),
            (Dtype::Binary | Dtype::Ubinary, _) => signs(&vector),
        };
        let signed = matches!(dtype, Dtype::Int8 | Dtype::Binary);
        match format {
            // The low byte of `level - 128` is the level with its highest bit flipped.
            Format::Base64 if signed => Self::Base64(STANDARD.encode(flip(&bytes))),
            Format::Base64 => Self::Base64(STANDARD.encode(bytes)),
            Format::Float => {
                Self::Integers(bytes.iter().map(|b| i16::from(*b) - if signed { 128 } else { 0 }).collect())
            }
        }
    }
}

/// The one of 256 levels between -1 and 1 that an element falls on.
fn level(value: f32) -> u8 {
    ((value.clamp(-1.0, 1.0) + 1.0) * (255.0 / 2.0)) as u8
}

/// One bit a dimension, set where it is not negative; the last byte is filled with zeros.
fn signs(vector: &[f32]) -> Vec<u8> {
    let byte = |eight: &[f32]| eight.iter().enumerate().fold(0u8, |byte, (i, v)| byte | u8::from(*v >= 0.0) << (7 - i));
    vector.chunks(8).map(byte).collect()
}

fn flip(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|b| b ^ 0x80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(vector: &[f32], dtype: Dtype, format: Format) -> serde_json::Value {
        serde_json::to_value(Output::new(vector.to_vec(), dtype, format)).unwrap()
    }

    #[test]
    fn base64_is_little_endian_f32() {
        let text = json(&[1.0, -2.5], Dtype::Float, Format::Base64);
        let bytes = STANDARD.decode(text.as_str().unwrap()).unwrap();
        assert_eq!(bytes, [1f32.to_le_bytes(), (-2.5f32).to_le_bytes()].concat());
    }

    #[test]
    fn int8_spans_the_unit_interval() {
        let vector = [-1.0, -0.5, 0.0, 0.5, 1.0];
        assert_eq!(json(&vector, Dtype::Uint8, Format::Float), serde_json::json!([0, 63, 127, 191, 255]));
        assert_eq!(json(&vector, Dtype::Int8, Format::Float), serde_json::json!([-128, -65, -1, 63, 127]));
    }

    #[test]
    fn binary_packs_signs_from_the_highest_bit() {
        let vector = [0.1, -0.1, 0.0, -0.2, -0.3, -0.4, -0.5, 0.6, 0.7];
        assert_eq!(json(&vector, Dtype::Ubinary, Format::Float), serde_json::json!([0b1010_0001, 0b1000_0000]));
        assert_eq!(json(&vector, Dtype::Binary, Format::Float), serde_json::json!([161 - 128, 0]));
    }

    #[test]
    fn base64_of_signed_types_is_twos_complement() {
        let text = json(&[-1.0, 1.0], Dtype::Int8, Format::Base64);
        assert_eq!(STANDARD.decode(text.as_str().unwrap()).unwrap(), [(-128i8) as u8, 127]);
    }
}
