//! Small files that ask for much are refused in little memory and time. Alone in its process, whose every allocation
//! is counted.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed
#![allow(unsafe_code, reason = "an allocator is unsafe by its trait; this one hands everything on")]

mod drafts;
mod hostile_files;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use drafts::seal;
use hostile_files::{Kind, grown, hollow, vectors};
use mpatch::checkpoint::{Checkpoint, shards_of_bytes, tensors_of_bytes};
use mpatch::facts::FactsFile;
use mpatch::patch::layout;
use mpatch::patch::manifest::Codec;
use mpatch::patch::{Patch, decode_section, encode};

/// What a hostile file of a kibibyte may cost.
const MEMORY_MAX_BYTES: usize = 8 << 20;
/// On the mean, since a busy machine may stop any single one for longer.
const TIME_MAX: Duration = Duration::from_millis(10);

/// The system's allocator, counting.
struct Counting;

/// Bytes that are allocated now.
static CURRENT: AtomicUsize = AtomicUsize::new(0);
/// The most there were since this was last set.
static PEAK: AtomicUsize = AtomicUsize::new(0);

impl Counting {
    fn add(size_bytes: usize) {
        let current = CURRENT.fetch_add(size_bytes, Ordering::Relaxed) + size_bytes;
        PEAK.fetch_max(current, Ordering::Relaxed);
    }

    fn remove(size_bytes: usize) {
        CURRENT.fetch_sub(size_bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call is handed to the system's allocator as it came, and its answer is handed back.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        // SAFETY: the caller keeps the contract of this trait.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::remove(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size_bytes: usize) -> *mut u8 {
        // While it moves, both may be there.
        Self::add(size_bytes);
        // SAFETY: as above.
        let moved = unsafe { System.realloc(pointer, layout, size_bytes) };
        Self::remove(layout.size());
        moved
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that `run` needed at the most, beyond what there was before. (zstd's own memory is C's and not counted: its
/// window has a limit of its own.)
fn peak_bytes<T>(run: impl FnOnce() -> T) -> usize {
    let before = CURRENT.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    drop(run());
    PEAK.load(Ordering::Relaxed) - before
}

// One test, for memory is counted for the whole process.
#[test]
fn what_is_small_costs_little() {
    lengths_in_a_manifest();
    every_vector();
    bombs();
    patches_that_grow();
    hollow_patches();
    facts();
    headers();
    #[cfg(feature = "edit")]
    archives();
    #[cfg(feature = "edit")]
    tokenizers();
}

fn lengths_in_a_manifest() {
    let (draft, _) = drafts::tiny();
    let patch = Patch::decode(encode(&draft).unwrap()).unwrap();
    let manifest = patch.manifest_bytes();
    let rest = &patch.bytes().unwrap()[64 + manifest.len()..];
    let (start, mut files) = (Instant::now(), 0);
    // Among the places are all lengths of strings and vectors; among the values are lengths just below each limit.
    for offset in 0..manifest.len() - 8 {
        for value in [u64::MAX, 1 << 62, (1 << 40) + 1, 1 << 31, (16 << 20) - 1, 65_000] {
            let mut hostile = manifest.to_vec();
            hostile[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
            let file = seal(&hostile, rest);
            let peak = peak_bytes(|| Patch::decode(file));
            assert!(peak < MEMORY_MAX_BYTES, "{value} at {offset}: {peak} bytes");
            files += 1;
        }
    }
    let mean = start.elapsed() / files;
    assert!(mean < TIME_MAX, "{mean:?} for each of {files} files");
}

/// Reads the bytes of a vector as what it is.
fn read(kind: Kind, bytes: Vec<u8>) {
    match kind {
        Kind::Patch | Kind::Apply | Kind::Revert => {
            let _ = Patch::decode(bytes).map(|patch| mpatch::verify::verify_form(&patch));
        }
        Kind::Safetensors => drop(tensors_of_bytes(&bytes)),
        Kind::Index => drop(shards_of_bytes(&bytes)),
        Kind::Facts => drop(FactsFile::parse(&bytes)),
    }
}

fn every_vector() {
    let vectors = vectors();
    let start = Instant::now();
    let files = vectors.len() as u32;
    for vector in vectors {
        let peak = peak_bytes(|| read(vector.kind, vector.bytes));
        assert!(peak < MEMORY_MAX_BYTES, "{}: {peak} bytes", vector.name);
    }
    let mean = start.elapsed() / files;
    assert!(mean < TIME_MAX, "{mean:?} for each of {files} files");
}

/// 32 KiB that grow to a gibibyte, where the frame or the manifest says otherwise.
fn bombs() {
    for (claimed, expected) in [(256, 256), (1 << 34, 256), (1 << 62, 256), (256, 1 << 30)] {
        for window in [13 << 3, 17 << 3, 0xff] {
            let mut frame =
                [&[0x28, 0xb5, 0x2f, 0xfd, 0xc0, window][..], &u64::to_le_bytes(claimed)].concat();
            for _ in 0..8_192 {
                frame.extend([&((131_072_u32 << 3) | 0b010).to_le_bytes()[..3], &[0]].concat());
            }
            let peak = peak_bytes(|| decode_section(Codec::Zstd, &frame, expected).unwrap_err());
            assert!(peak < MEMORY_MAX_BYTES, "{claimed} and {expected}: {peak} bytes");
        }
    }
}

/// The largest patches that a kibibyte holds: right ones as far as the ratio allows, and those that zstd would.
fn patches_that_grow() {
    const SIZE_MAX_BYTES: usize = 1 << 10;
    // The block of 128 KiB is zstd's largest, that of 8 KiB the format's.
    for (block_size, is_right) in [(8 << 10, true), (128 << 10, false)] {
        let fits = |side: &u64| grown(*side, block_size).len() <= SIZE_MAX_BYTES;
        let side = (1..5_000).rev().step_by(7).find(fits).unwrap();
        let file = grown(side, block_size);
        let size = file.len();
        let peak = peak_bytes(|| {
            let outcome = Patch::decode(file).map(|patch| {
                assert!(mpatch::verify::verify_form(&patch).holds());
                patch.update(0, 0).unwrap()
            });
            assert_eq!(outcome.is_ok(), is_right, "{side} by {side}");
        });
        // Three copies of all that the file can decode to; for a kibibyte that is less than any file may cost.
        let limit = MEMORY_MAX_BYTES.min(3 * layout::ZSTD_RATIO_MAX as usize * size);
        assert!(peak < limit, "{side} by {side}: {peak} bytes");
    }
}

/// About a kibibyte that speaks of 400 million weights, or of 3,600 million, is compared as what it holds: with itself,
/// with all the entries of a matrix of another shape, and however many tensors it names.
fn hollow_patches() {
    let dense = Patch::decode(grown(64, 8 << 10)).unwrap();
    for (side, tensors) in [(20_000, 1), (60_000, 1), (60_000, 100)] {
        let patch = Patch::decode(hollow(side, tensors)).unwrap();
        assert!(patch.size_bytes() < 1000 + 600 * tensors as u64, "{} bytes", patch.size_bytes());
        for [first, second] in [[&patch, &patch], [&patch, &dense], [&dense, &patch]] {
            let start = Instant::now();
            let peak = peak_bytes(|| {
                let diff = mpatch::diff::diff_patches(first, second).unwrap();
                assert_eq!((diff.is_same(), diff.tensors.len()), (first.id() == second.id(), tensors));
                let hollow =
                    if first.id() == patch.id() { &diff.tensors[0].first } else { &diff.tensors[0].second };
                assert!(hollow.as_ref().unwrap().norm > 0.0, "{diff:?}");
            });
            assert!(peak < MEMORY_MAX_BYTES, "{side} by {side}: {peak} bytes");
            // Entry by entry the larger one takes more than half a minute.
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        }
    }
}

/// Texts that a facts file has once and that thousands of its records share.
fn facts() {
    let many = |count: usize, text: &str| vec![text; count].join(",");
    let (name, count) = ("s".repeat(100_000), 5_000);
    let (texts, least) = (many(count, r#""a""#), many(count, r#""n""#));
    let call = format!(
        r#"{{"prompts":[{}],"subject":[{}],"target_new":[{texts}],
            "locality_inputs":{{"{name}":{{"prompt":[{least}],"ground_truth":[{least}]}}}}}}"#,
        (0..count).map(|index| format!(r#""a{index}""#)).collect::<Vec<_>>().join(","),
        texts,
    );
    let counterfact = format!(
        r#"[{{"requested_rewrite":{{"prompt":"{{}} x","subject":"a","target_new":{{"str":"b"}},
            "target_true":{{"str":"{}"}}}},"neighborhood_prompts":[{}]}}]"#,
        "o".repeat(4_096),
        many(20_000, r#""n""#),
    );
    for text in [call, counterfact] {
        let peak = peak_bytes(|| FactsFile::parse(text.as_bytes()).unwrap());
        // JSON values and records, not the shared text for each of them: that would be 80 MiB, or 500.
        assert!(peak < 16 << 20, "{peak} bytes for {}", text.len());
    }
}

/// A header takes at most four times its size, and a mebibyte.
fn headers() {
    const SIZE_BYTES: usize = 6 << 20;
    let fill = |entry: &dyn Fn(usize) -> String| {
        let mut text = String::from("{");
        for index in 0.. {
            if text.len() > SIZE_BYTES {
                break;
            }
            write!(text, "{}{}", if index == 0 { "" } else { "," }, entry(index)).unwrap();
        }
        text + "}"
    };
    let entry = |name: &str, shape: &str| {
        format!(r#""{name}":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,0]}}"#)
    };
    let zeros = vec!["0"; 32].join(",");
    let (deep, long) = ("[".repeat(SIZE_BYTES), "n".repeat(SIZE_BYTES));
    let texts = [
        ("many tensors", fill(&|index| entry(&format!("{index:x}"), "0"))),
        ("many dimensions", fill(&|index| entry(&format!("{index:x}"), &zeros))),
        ("one dimension too many", fill(&|index| entry(&format!("{index:x}"), &format!("{zeros},0")))),
        ("long names", fill(&|index| entry(&format!("{index:0>512x}"), "0"))),
        ("braces in a name", format!("{{{}}}", entry(&"{".repeat(SIZE_BYTES), "0"))),
        ("free text", format!(r#"{{"__metadata__":{{"a":"{long}"}}}}"#)),
        ("much free text", format!(r#"{{"__metadata__":{}}}"#, fill(&|index| format!(r#""{index:x}":"""#)))),
        ("depth", format!(r#"{{"a":{deep}"#)),
        ("one shape", format!("{{{}}}", entry("a", &"0,".repeat(SIZE_BYTES / 2)))),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for (what, text) in texts {
        let size = (text.len() as u64).to_le_bytes();
        std::fs::write(&path, [&size[..], text.as_bytes()].concat()).unwrap();
        let peak = peak_bytes(|| Checkpoint::open(&path));
        assert!(peak < 4 * text.len() + (1 << 20), "{what}: {peak} bytes for {}", text.len());
    }
    // What only claims to be large is not made room for.
    std::fs::write(&path, [&99_999_999_u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    let peak = peak_bytes(|| Checkpoint::open(&path).unwrap_err());
    assert!(peak < MEMORY_MAX_BYTES, "{peak} bytes");
}

/// Archives of statistics: an array that claims a header of 4 GiB, and such as decompress to a hundred times what a
/// layer of the model, or their own shape, takes.
#[cfg(feature = "edit")]
fn archives() {
    let header = |shape: &str| {
        let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}\n");
        [&b"\x93NUMPY\x01\x00"[..], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
    };
    let long = [&b"\x93NUMPY\x02\x00"[..], &u32::MAX.to_le_bytes(), b"{'descr': '<f4', }"].concat();
    let (stored, deflated) = (zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated);
    for (method, array, zeros, inner) in [
        (stored, long, 0, None),
        (deflated, header("2, 2"), 64 << 20, None),
        (deflated, header("4096, 4096"), 64 << 20, Some(2)),
    ] {
        let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        archive.start_file("mom2.mom2.npy", options).unwrap();
        std::io::Write::write_all(&mut archive, &array).unwrap();
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), zeros), &mut archive).unwrap();
        let archive = archive.finish().unwrap();
        let peak = peak_bytes(|| mpatch::edit::import::read_npz(archive, inner).unwrap_err());
        assert!(peak < MEMORY_MAX_BYTES, "{method}, {inner:?}: {peak} bytes");
    }
}

/// Tokenizers of a kibibyte that write a text out a million times longer: refused before they see one.
#[cfg(feature = "edit")]
fn tokenizers() {
    use mpatch::model::Tokenizer;
    let file = |part: &str, steps: &str| {
        let model = r#""model":{"type":"BPE","vocab":{"x":0},"merges":[]}"#;
        format!(r#"{{"version":"1.0","{part}":{steps},{model}}}"#).into_bytes()
    };
    let many = |field: &str, step: &str, count| {
        format!(r#"{{"type":"Sequence","{field}":[{}]}}"#, vec![step; count].join(","))
    };
    let replace =
        format!(r#"{{"type":"Replace","pattern":{{"String":"x"}},"content":"{}"}}"#, "x".repeat(30));
    for hostile in [
        file("normalizer", &many("normalizers", &replace, 6)),
        file("normalizer", &many("normalizers", r#"{"type":"ByteLevel"}"#, 24)),
        file("decoder", &many("decoders", &replace, 6)),
    ] {
        assert!(hostile.len() < 1 << 10);
        let peak = peak_bytes(|| Tokenizer::parse(&hostile).unwrap_err());
        assert!(peak < MEMORY_MAX_BYTES, "{peak} bytes");
    }
    // A text said a hundred times over, by the step that adds tokens, is said once.
    let again = vec![r#"{"Sequence":{"id":"A","type_id":0}}"#; 100].join(",");
    let template = format!(
        r#"{{"type":"TemplateProcessing","single":[{again}],"pair":[{again}],"special_tokens":{{}}}}"#
    );
    let tokenizer = Tokenizer::parse(&file("post_processor", &template)).unwrap();
    assert_eq!(tokenizer.encode("xx").unwrap(), [0, 0]);
}
