import Foundation

/// Everything that a user or a file can cause; the same kinds as in the Python package `moddit`.
///
/// Messages read `[component] FILE: what is wrong, want VALUE; what to do`. What a terminal would obey in them is
/// escaped, since much of them comes from files.
public enum ModditError: Error, Sendable, Equatable {
    /// A file is not what it claims to be: truncated, malformed, an unknown version or field.
    case format(String)
    /// A component, file or function is absent.
    case missing(String)
    /// A tensor or table has the wrong shape.
    case shape(String)
    /// A value is not allowed.
    case valueRange(String)
    /// Well-formed, but not implemented.
    case unsupported(String)
    /// The output is there already and may not be replaced.
    case outputExists(String)
    /// The output cannot be written.
    case storage(String)
    /// The runtime cannot load a model, or compute with it.
    case compute(String)

    /// What is wrong, what was wanted and what to do.
    public var message: String {
        switch self {
        case .format(let message), .missing(let message), .shape(let message), .valueRange(let message),
            .unsupported(let message), .outputExists(let message), .storage(let message), .compute(let message):
            message.printable
        }
    }
}

extension ModditError: CustomStringConvertible, LocalizedError {
    /// The message.
    public var description: String { message }

    /// The message.
    public var errorDescription: String? { message }
}
