//! The XOR mask (RFC 6455 section 5.3): "j = i MOD 4; transformed-octet-i = original-octet-i XOR
//! masking-key-octet-j". The same function masks and unmasks.

/// Bytes per step: two SSE2 registers, the widest that every x86-64 has, so that the compiler unrolls by two.
const STEP: usize = 32;

/// Masks or unmasks `data` in place; `offset` is the position of `data[0]` within the frame's payload.
pub fn apply(data: &mut [u8], mut key: [u8; 4], offset: usize) {
    key.rotate_left(offset % 4);
    let mut wide = [0; STEP];
    for (i, byte) in wide.iter_mut().enumerate() {
        *byte = key[i % 4];
    }

    let (steps, rest) = data.as_chunks_mut::<STEP>();
    for step in steps {
        for (byte, key) in step.iter_mut().zip(wide) {
            *byte ^= key;
        }
    }
    // Small messages are the common case and are mostly remainder: words first, then fewer than eight bytes.
    let word_key = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (words, rest) = rest.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ word_key).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(wide) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// Section 5.3, word for word.
    fn naive(data: &[u8], key: [u8; 4], offset: usize) -> Vec<u8> {
        let octets = data.iter().enumerate();
        octets.map(|(i, byte)| byte ^ key[(i + offset) % 4]).collect()
    }

    #[test]
    fn like_the_naive_loop_at_every_length_and_offset() {
        let bytes: Vec<u8> = (0..70).map(|i| i * 3 + 1).collect();
        for len in 0..=bytes.len() {
            for offset in 0..=9 {
                let mut data = bytes[..len].to_vec();
                apply(&mut data, KEY, offset);
                assert_eq!(data, naive(&bytes[..len], KEY, offset), "{len} {offset}");
            }
        }
    }

    #[test]
    fn like_the_naive_loop_at_every_alignment() {
        let bytes: Vec<u8> = (0..255).collect();
        for start in 0..40 {
            let mut data = bytes.clone();
            apply(&mut data[start..], KEY, start);
            assert_eq!(data[..start], bytes[..start]);
            assert_eq!(data[start..], naive(&bytes[start..], KEY, start));
        }
    }

    #[test]
    fn in_pieces_as_in_one_go_and_back_again() {
        let bytes: Vec<u8> = (0..100).collect();
        let whole = naive(&bytes, KEY, 0);
        for cut in 0..=bytes.len() {
            let mut data = bytes.clone();
            let (left, right) = data.split_at_mut(cut);
            apply(left, KEY, 0);
            apply(right, KEY, cut);
            assert_eq!(data, whole, "{cut}");
            apply(&mut data, KEY, 0);
            assert_eq!(data, bytes, "{cut}");
        }
    }

    #[test]
    fn an_offset_near_the_end_of_usize_does_not_overflow() {
        let mut data = [0; 40];
        apply(&mut data, KEY, usize::MAX);
        assert_eq!(data[..4], [KEY[3], KEY[0], KEY[1], KEY[2]]);
    }
}
