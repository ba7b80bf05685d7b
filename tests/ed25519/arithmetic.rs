//! Ed25519's curve in the plainest arithmetic: slow, of the tests' own, and so no witness for the crate that it judges.
//!
//! Numbers are four limbs of 64 bits, the lowest first. Points are `(X : Y : Z : T)` with `x = X/Z`, `y = Y/Z` and
//! `T = XY/Z`, for which one formula adds any two points of the curve `-x^2 + y^2 = 1 + d x^2 y^2`.

pub type Number = [u64; 4];

/// 2^255 - 19.
pub const PRIME: Number = [0xffff_ffff_ffff_ffed, u64::MAX, u64::MAX, 0x7fff_ffff_ffff_ffff];
/// The order of the base point: 2^252 + 27742317777372353535851937790883648493.
pub const ORDER: Number = [0x5812_631a_5cf5_d3ed, 0x14de_f9de_a2f7_9cd6, 0, 0x1000_0000_0000_0000];
pub const ZERO: Number = [0; 4];
pub const ONE: Number = [1, 0, 0, 0];

pub fn is_below(one: Number, other: Number) -> bool {
    one.iter().rev().lt(other.iter().rev())
}

/// The sum, without what does not fit, and whether there is such.
pub fn sum(one: Number, other: Number) -> (Number, bool) {
    let (mut sum, mut carry) = (ZERO, false);
    for ((limb, one), other) in sum.iter_mut().zip(one).zip(other) {
        let (partial, first) = one.overflowing_add(other);
        let (whole, second) = partial.overflowing_add(u64::from(carry));
        (*limb, carry) = (whole, first || second);
    }
    (sum, carry)
}

/// The difference, which must not be negative.
pub fn difference(one: Number, other: Number) -> Number {
    let complement = other.map(|limb| !limb);
    sum(sum(one, complement).0, ONE).0
}

fn reduced(number: Number, modulus: Number) -> Number {
    let mut number = number;
    while !is_below(number, modulus) {
        number = difference(number, modulus);
    }
    number
}

fn product(one: Number, other: Number) -> [u64; 8] {
    let mut product = [0; 8];
    for (place, one) in one.into_iter().enumerate() {
        let mut carry = 0_u128;
        for (offset, other) in other.into_iter().enumerate() {
            carry += u128::from(product[place + offset]) + u128::from(one) * u128::from(other);
            product[place + offset] = carry as u64;
            carry >>= 64;
        }
        product[place + 4] = carry as u64;
    }
    product
}

pub fn to_bytes(number: Number) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (chunk, limb) in bytes.chunks_exact_mut(8).zip(number) {
        chunk.copy_from_slice(&limb.to_le_bytes());
    }
    bytes
}

pub fn from_bytes(bytes: [u8; 32]) -> Number {
    let mut number = ZERO;
    for (limb, chunk) in number.iter_mut().zip(bytes.chunks_exact(8)) {
        *limb = chunk.iter().rev().fold(0, |limb, byte| limb << 8 | u64::from(*byte));
    }
    number
}

fn bit(number: Number, place: usize) -> bool {
    number[place / 64] >> (place % 64) & 1 == 1
}

// ------------------------------------------------------------------------------------- numbers modulo the order --

/// 512 bits, little-endian, modulo [`ORDER`]: one bit after the other, from the top.
pub fn modulo_order(bytes: &[u8]) -> Number {
    let mut rest = ZERO;
    for place in (0..8 * bytes.len()).rev() {
        let bit = u64::from(bytes[place / 8] >> (place % 8) & 1);
        let double = sum(rest, rest).0;
        rest = reduced(sum(double, [bit, 0, 0, 0]).0, ORDER);
    }
    rest
}

/// `addend + one * other` modulo [`ORDER`].
pub fn multiply_add(one: Number, other: Number, addend: Number) -> Number {
    let bytes: Vec<u8> = product(one, other).iter().flat_map(|limb| limb.to_le_bytes()).collect();
    reduced(sum(modulo_order(&bytes), addend).0, ORDER)
}

// ------------------------------------------------------------------------------------- numbers modulo the prime --

fn add(one: Number, other: Number) -> Number {
    reduced(sum(one, other).0, PRIME)
}

fn subtract(one: Number, other: Number) -> Number {
    add(one, difference(PRIME, other))
}

/// 2^256 is 38 modulo the prime, so the upper half counts 38 times.
fn multiply(one: Number, other: Number) -> Number {
    let product = product(one, other);
    let mut folded = ZERO;
    let mut carry = 0_u128;
    for place in 0..4 {
        carry += u128::from(product[place]) + 38 * u128::from(product[place + 4]);
        folded[place] = carry as u64;
        carry >>= 64;
    }
    let (mut folded, overflows) = sum(folded, [38 * carry as u64, 0, 0, 0]);
    if overflows {
        folded = sum(folded, [38, 0, 0, 0]).0;
    }
    reduced(folded, PRIME)
}

fn power(base: Number, exponent: Number) -> Number {
    (0..256).rev().fold(ONE, |result, place| {
        let square = multiply(result, result);
        if bit(exponent, place) { multiply(square, base) } else { square }
    })
}

fn invert(number: Number) -> Number {
    power(number, difference(PRIME, [2, 0, 0, 0]))
}

fn halved(number: Number) -> Number {
    std::array::from_fn(|place| {
        let above = number.get(place + 1).copied().unwrap_or_default();
        number[place] >> 1 | above << 63
    })
}

fn square_root(number: Number) -> Option<Number> {
    // The prime is 5 modulo 8: a root is the power of (p + 3) / 8, or that times a root of -1.
    let exponent = halved(halved(halved(sum(PRIME, [3, 0, 0, 0]).0)));
    let of_minus_one = power([2, 0, 0, 0], halved(halved(difference(PRIME, ONE))));
    let root = power(number, exponent);
    [root, multiply(root, of_minus_one)].into_iter().find(|root| multiply(*root, *root) == number)
}

fn coefficient() -> Number {
    let minus = subtract(ZERO, [121_665, 0, 0, 0]);
    multiply(minus, invert([121_666, 0, 0, 0]))
}

// ------------------------------------------------------------------------------------------------------- points --

#[derive(Debug, Clone, Copy)]
pub struct Point {
    x: Number,
    y: Number,
    z: Number,
    t: Number,
}

impl PartialEq for Point {
    fn eq(&self, other: &Self) -> bool {
        let same = |one, other_z, another, z| multiply(one, other_z) == multiply(another, z);
        same(self.x, other.z, other.x, self.z) && same(self.y, other.z, other.y, self.z)
    }
}

/// A curve with its constants, which take a while to find.
pub struct Curve {
    d: Number,
    pub base: Point,
    /// The eight points whose order divides eight; the first one is neutral, the second one has order eight.
    pub torsion: Vec<Point>,
}

impl Point {
    const NEUTRAL: Point = Point { x: ZERO, y: ONE, z: ONE, t: ZERO };

    pub fn is_neutral(&self) -> bool {
        *self == Self::NEUTRAL
    }

    pub fn encode(&self) -> [u8; 32] {
        let inverse = invert(self.z);
        let (x, y) = (multiply(self.x, inverse), multiply(self.y, inverse));
        let mut bytes = to_bytes(y);
        bytes[31] |= (x[0] as u8 & 1) << 7;
        bytes
    }
}

impl Curve {
    pub fn new() -> Self {
        let mut curve = Self { d: coefficient(), base: Point::NEUTRAL, torsion: Vec::new() };
        let y = multiply([4, 0, 0, 0], invert([5, 0, 0, 0]));
        curve.base = curve.decode(to_bytes(y)).unwrap();
        // Any point times the order of the base is of small order; some are of order eight.
        let of_order_eight = (2_u64..).find_map(|y| {
            let point = curve.times(curve.decode(to_bytes([y, 0, 0, 0]))?, ORDER);
            (!curve.times(point, [4, 0, 0, 0]).is_neutral()).then_some(point)
        });
        let step = of_order_eight.unwrap();
        curve.torsion = (0..8).map(|times| curve.times(step, [times, 0, 0, 0])).collect();
        curve
    }

    pub fn add(&self, one: Point, other: Point) -> Point {
        let a = multiply(subtract(one.y, one.x), subtract(other.y, other.x));
        let b = multiply(add(one.y, one.x), add(other.y, other.x));
        let c = multiply(multiply(add(one.t, one.t), self.d), other.t);
        let d = multiply(add(one.z, one.z), other.z);
        let (e, f, g, h) = (subtract(b, a), subtract(d, c), add(d, c), add(b, a));
        Point { x: multiply(e, f), y: multiply(g, h), z: multiply(f, g), t: multiply(e, h) }
    }

    /// The number is not taken modulo any order.
    pub fn times(&self, point: Point, number: Number) -> Point {
        (0..256).rev().fold(Point::NEUTRAL, |result, place| {
            let double = self.add(result, result);
            if bit(number, place) { self.add(double, point) } else { double }
        })
    }

    /// Takes what lax decoders take: any `y` below 2^255, and any sign of `x = 0`.
    pub fn decode(&self, bytes: [u8; 32]) -> Option<Point> {
        let sign = bytes[31] >> 7;
        let mut bytes = bytes;
        bytes[31] &= 0x7f;
        let y = reduced(from_bytes(bytes), PRIME);
        let square = multiply(y, y);
        let (above, below) = (subtract(square, ONE), add(multiply(self.d, square), ONE));
        let root = square_root(multiply(above, invert(below)))?;
        let x = if root[0] as u8 & 1 == sign { root } else { subtract(ZERO, root) };
        Some(Point { x, y, z: ONE, t: multiply(x, y) })
    }
}
