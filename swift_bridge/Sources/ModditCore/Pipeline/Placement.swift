/// Where a framework would run the operations of one function of a package.
package struct Placement: Sendable, Hashable {
    /// Operations that select and move tokens, which few compute units have.
    package static let selecting: Set<String> = [
        "argsort", "gather", "gather_along_axis", "scatter", "scatter_along_axis", "topk",
    ]

    /// Path of the package in its bundle.
    package let package: String
    /// The function.
    package let function: String
    /// Type of operation, then device, to how many there are.
    package private(set) var operations: [String: [String: Int]] = [:]

    /// Device to how many operations there are, of all types.
    var devices: [String: Int] {
        operations.values.reduce(into: [:]) { sum, counts in sum.merge(counts) { $0 + $1 } }
    }

    /// Makes a placement without operations.
    package init(package: String, function: String) {
        self.package = package
        self.function = function
    }

    /// Counts an operation; constants, which no device runs, are left out.
    ///
    /// - Parameters:
    ///   - name: its type, as in "ios18.gather" or "gather".
    ///   - device: where it would run; nil if nobody can tell.
    package mutating func count(_ name: String, on device: String?) {
        let kind = name.split(separator: ".").last.map { String($0) } ?? name
        guard kind != "const" else { return }
        operations[kind, default: [:]][device ?? "unknown", default: 0] += 1
    }
}
