/// A text that equals those of the same code points, and no others.
///
/// A `String` also equals one that Unicode counts as equivalent, such as é and e with an accent behind it; in JSON, and
/// in Python, these are two names.
package struct ExactText: Sendable {
    /// The text.
    package let text: String

    /// Wraps a text.
    package init(_ text: String) {
        self.text = text
    }
}

extension ExactText: Hashable, Comparable {
    /// Whether two texts have the same code points.
    package static func == (a: ExactText, b: ExactText) -> Bool {
        a.text.utf8.elementsEqual(b.text.utf8)
    }

    /// Orders by code points, which is how UTF-8 orders bytes.
    package static func < (a: ExactText, b: ExactText) -> Bool {
        a.text.utf8.lexicographicallyPrecedes(b.text.utf8)
    }

    /// Hashes the code points.
    package func hash(into hasher: inout Hasher) {
        for byte in text.utf8 { hasher.combine(byte) }
    }
}

extension ExactText: ExpressibleByStringLiteral, CustomStringConvertible {
    /// Wraps a text.
    package init(stringLiteral text: String) {
        self.init(text)
    }

    /// The text.
    package var description: String { text }
}
