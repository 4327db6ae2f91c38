import Foundation

/// How much memory the weights of a bundle take if a picture is edited, for warnings.
package struct MemoryEstimate: Sendable, Hashable {
    /// Share of a machine's memory from which on a warning is due.
    private static let limit = 0.5

    /// Of each part's packages.
    let bytes: [PackageRole: Int]
    /// Whether one part at a time is in memory.
    let reducesMemory: Bool

    /// Adds up the files of a bundle's packages.
    package init(_ manifest: Manifest, reducesMemory: Bool) {
        var bytes: [PackageRole: Int] = [:]
        for (role, packages) in manifest.graphs?.packages ?? [:] {
            bytes[role] = packages.flatMap { manifest.files(of: $0) }.reduce(0) { Self.add($0, $1.bytes) }
        }
        self.bytes = bytes
        self.reducesMemory = reducesMemory
    }

    /// Of the weights that are in memory at once.
    package var peak: Int {
        reducesMemory ? bytes.values.max() ?? 0 : bytes.values.reduce(0, Self.add)
    }

    /// Says what may go wrong on a machine with some bytes of memory; nothing is refused.
    package func warnings(physicalMemory: UInt64 = ProcessInfo.processInfo.physicalMemory) -> [String] {
        guard Double(peak) > Self.limit * Double(physicalMemory) else { return [] }
        let advice =
            reducesMemory
            ? "a bundle with fewer bits needs less: convert with --compress"
            : "reduce memory to keep one part at a time"
        let sizes = [Double(peak), Double(physicalMemory)].map { String(format: "%.1f", $0 / 1e9) }
        return ["the weights take \(sizes[0]) GB of this machine's \(sizes[1]) GB; \(advice)"]
    }

    private static func add(_ a: Int, _ b: Int) -> Int {
        let (sum, isTooLarge) = a.addingReportingOverflow(b)
        return isTooLarge ? Int.max : sum
    }
}
