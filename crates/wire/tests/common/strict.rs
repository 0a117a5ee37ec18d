//! A second opinion on DEFLATE: RFC 1951 word for word, slow, and strict about the window.

/// Order in which the code lengths of the code lengths come (section 3.2.7).
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: u32) -> Option<usize> {
        let mut value = 0;
        for i in 0..count {
            let byte = self.bytes.get(self.at / 8)?;
            value |= usize::from(byte >> (self.at % 8) & 1) << i;
            self.at += 1;
        }
        Some(value)
    }
}

/// A Huffman code as (length, code, symbol).
struct Code(Vec<(u32, usize, usize)>);

impl Code {
    fn new(lengths: &[u32]) -> Self {
        let (mut code, mut codes) = (0, Vec::new());
        for length in 1..=15 {
            code <<= 1;
            for (symbol, _) in lengths.iter().enumerate().filter(|(_, l)| **l == length) {
                codes.push((length, code, symbol));
                code += 1;
            }
        }
        Self(codes)
    }

    fn read(&self, bits: &mut Bits<'_>) -> Option<usize> {
        let mut code = 0;
        for length in 1..=15 {
            code = code << 1 | bits.take(1)?;
            if let Some(found) = self.0.iter().find(|c| (c.0, c.1) == (length, code)) {
                return Some(found.2);
            }
        }
        None
    }
}

fn codes(bits: &mut Bits<'_>, fixed: bool) -> Option<(Code, Code)> {
    if fixed {
        let length = |symbol| match symbol {
            0..144 => 8,
            144..256 => 9,
            256..280 => 7,
            _ => 8,
        };
        let lengths: Vec<u32> = (0..288).map(length).collect();
        return Some((Code::new(&lengths), Code::new(&[5; 30])));
    }
    let (literals, distances, count) = (bits.take(5)? + 257, bits.take(5)? + 1, bits.take(4)? + 4);
    let mut lengths = [0; 19];
    for &place in &ORDER[..count] {
        lengths[place] = bits.take(3)? as u32;
    }
    let meta = Code::new(&lengths);
    let mut lengths: Vec<u32> = Vec::new();
    while lengths.len() < literals + distances {
        let (value, times) = match meta.read(bits)? {
            16 => (*lengths.last()?, 3 + bits.take(2)?),
            17 => (0, 3 + bits.take(3)?),
            18 => (0, 11 + bits.take(7)?),
            length => (length as u32, 1),
        };
        lengths.extend(std::iter::repeat_n(value, times));
    }
    Some((Code::new(&lengths[..literals]), Code::new(&lengths[literals..])))
}

/// Appends to `out` what the message's payload becomes (its tail still missing, as on the wire). `out` holds the context.
/// `None` if anything is wrong, if a distance is beyond `window` bytes, or if the payload doesn't end as it should.
pub(crate) fn inflate(payload: &[u8], window: usize, out: &mut Vec<u8>) -> Option<()> {
    let bytes = [payload, &[0x00, 0x00, 0xff, 0xff]].concat();
    let mut bits = Bits { bytes: &bytes, at: 0 };
    while bits.at < bytes.len() * 8 {
        let last = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => {
                bits.at = bits.at.next_multiple_of(8);
                let (len, complement) = (bits.take(16)?, bits.take(16)?);
                if len ^ complement != 0xffff {
                    return None;
                }
                for _ in 0..len {
                    out.push(bits.take(8)? as u8);
                }
            }
            kind @ (1 | 2) => {
                let (literals, distances) = codes(&mut bits, kind == 1)?;
                loop {
                    let symbol = literals.read(&mut bits)?;
                    let Some(length) = symbol.checked_sub(257) else {
                        match u8::try_from(symbol) {
                            Ok(byte) => out.push(byte),
                            Err(_) => break,
                        }
                        continue;
                    };
                    let length = match length {
                        0..8 => length + 3,
                        28 => 258,
                        29.. => return None,
                        _ => {
                            let extra = length / 4 - 1;
                            ((4 + length % 4) << extra) + 3 + bits.take(extra as u32)?
                        }
                    };
                    let distance = match distances.read(&mut bits)? {
                        distance @ 0..4 => distance + 1,
                        30.. => return None,
                        distance => {
                            let extra = distance / 2 - 1;
                            ((2 + distance % 2) << extra) + 1 + bits.take(extra as u32)?
                        }
                    };
                    if distance > window || distance > out.len() {
                        return None;
                    }
                    for _ in 0..length {
                        out.push(out[out.len() - distance]);
                    }
                }
            }
            _ => return None,
        }
        if last {
            // Section 7.2.3.4 of RFC 7692: what follows begins with the next byte.
            bits.at = bits.at.next_multiple_of(8);
        }
    }
    Some(())
}
